"""The released tokenizer, template and configs with small random weights, on real photos."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mllama_cli.checkpoint.writer import write_checkpoint
from tests.checkpoints import config_dict, random_network, write_preprocessor
from tests.console import run_here, run_script
from tests.peers import blind_rows_see_nothing, peer_inputs, transformers_model

IMAGE = 128256


@pytest.fixture(scope="module")
def checkpoint(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything of the released folder but the weights and the sizes of the network."""
    folder = tmp_path_factory.mktemp("released") / "tiny-11b"
    shutil.copytree(shared / "llama-3.2-11b-vision-instruct", folder, copy_function=shutil.copyfile)
    released = json.loads((folder / "config.json").read_text())
    ids = {key: released["text_config"][key] for key in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")}
    config = config_dict(ids, {"image_size": 112}, image_token_index=IMAGE)
    write_checkpoint(folder, dict(random_network(config, seed=2).named_parameters()), config)
    write_preprocessor(folder, 112)
    return folder


@pytest.fixture(scope="module")
def peer(checkpoint: Path) -> tuple[Any, Any]:
    """Return transformers' model and processor of the checkpoint."""
    pytest.importorskip("transformers")
    from transformers import MllamaProcessor

    config = json.loads((checkpoint / "config.json").read_text())
    return transformers_model(config, random_network(config, seed=2)), MllamaProcessor.from_pretrained(checkpoint)


def transformers_answer(peer: tuple[Any, Any], messages: list[dict[str, Any]], photos: list[Path]) -> list[int]:
    import torch
    from PIL import Image

    model, processor = peer
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    inputs = peer_inputs([ids], [[]], IMAGE, 4)
    if photos:
        inputs = dict(processor([[Image.open(p) for p in photos]], text, add_special_tokens=False, return_tensors="pt"))
        assert inputs["input_ids"][0].tolist() == ids
    handles = blind_rows_see_nothing(model, [ids], IMAGE)
    with torch.inference_mode():
        out = model.generate(**inputs, max_new_tokens=32, do_sample=False, temperature=None, top_p=None, pad_token_id=0)
    for handle in handles:
        handle.remove()
    return [int(token) for token in out[0, len(ids) :]]


@pytest.mark.parametrize("photos", [[], ["dog.jpg"], ["pasta.jpeg"], ["dog.jpg", "pasta.jpeg"]], ids=" ".join)
def test_the_command_answers_as_transformers_token_for_token(
    checkpoint: Path, peer: tuple[Any, Any], shared: Path, photos: list[str]
) -> None:
    from tokenizers import Tokenizer

    paths = [shared / "photos" / name for name in photos]
    content = [{"type": "image"} for _ in paths] + [{"type": "text", "text": "What is this?"}]
    messages = [{"role": "user", "content": content if paths else "What is this?"}]
    expected = transformers_answer(peer, messages, paths)
    run = run_script if len(photos) == 2 else run_here  # in this process it saves importing torch once more
    result = run(
        "chat", "-m", str(checkpoint), "--device", "cpu", "--temperature", "0", "--max-tokens", "32", "--json",
        *(argument for path in paths for argument in ("-i", str(path))), "What is this?",
    )  # fmt: skip
    assert result.code == 0, result.err
    answer = json.loads(result.out)
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    stop = [token for token in expected if token in (128001, 128008, 128009)]
    assert answer["usage"]["completion_tokens"] == len(expected) - len(stop)
    assert answer["answer"] == tokenizer.decode(expected, skip_special_tokens=True)
