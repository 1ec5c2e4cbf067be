"""What an imported model gets, held to the released tokenizer and chat template."""

import json
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError
from tokenizers import Tokenizer

from mllama_cli.checkpoint.gguf.vocabulary import gguf_vocabulary
from mllama_cli.core.errors import CheckpointError
from mllama_cli.processing.chat_template import OUR_TEMPLATE
from mllama_cli.processing.template_worker import environment
from mllama_cli.processing.tokenizer_build import IMAGE, llama_tokenizer, token_ids
from mllama_cli.processing.tokenizer_file import read_tokenizer
from tests.conftest import ROOT

RELEASED = "llama-3.2-11b-vision-instruct"


@pytest.fixture(scope="module")
def released(shared: Path) -> Tokenizer:
    return read_tokenizer(shared / RELEASED / "tokenizer.json")


@pytest.fixture(scope="module")
def rebuilt(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Return the tokenizer that is made from the entries that a GGUF file has."""
    data = json.loads((shared / RELEASED / "tokenizer.json").read_text())
    names = {id_: token for token, id_ in data["model"]["vocab"].items()}
    names |= {token["id"]: token["content"] for token in data["added_tokens"]}
    entries = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": [names[id_] for id_ in range(128256)],
        "tokenizer.ggml.token_type": [1] * 128000 + [3] * 256,
        "tokenizer.ggml.merges": [" ".join(merge) for merge in data["model"]["merges"]],
    }
    found = gguf_vocabulary(entries, "x.gguf")
    assert token_ids(found.special) == {
        "bos_token_id": 128000,
        "eos_token_id": [128001, 128008, 128009],
        "pad_token_id": 128004,
    }
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    file.write_bytes(llama_tokenizer(found.tokens, {**found.special, IMAGE: 128256}, found.merges, "x.gguf"))
    return read_tokenizer(file)


def test_ids_equal_the_released_tokenizers(released: Tokenizer, rebuilt: Tokenizer) -> None:
    corpus = [
        path.read_text() for folder in ("mllama_cli", "tests") for path in sorted((ROOT / folder).rglob("*.py"))[::8]
    ]
    corpus.append((ROOT / "README.md").read_text())
    corpus += [
        "".join(chr(code) for code in range(1, 0x3000)),
        "Grüße, naïve café! 你好，世界 — こんにちは안녕 Привет مرحبا 👩‍👩‍👧‍👦\u00a0\r\n\t  1234567 it's I'LL",
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n<|image|>What?<|eot_id|><|reserved_special_token_7|>",
    ]
    for text in corpus:
        for special in (True, False):
            assert (
                rebuilt.encode(text, add_special_tokens=special).ids
                == released.encode(text, add_special_tokens=special).ids
            )
    assert rebuilt.get_vocab() == released.get_vocab()


MESSAGES: dict[str, list[dict[str, Any]]] = {
    "a question": [{"role": "user", "content": " Hi \n"}],
    "a system message": [{"role": "system", "content": "  Be brief.\n"}, {"role": "user", "content": "Hi"}],
    "an image": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " What? "}]}],
    "parts of text": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
    "an image and a system message": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}]},
    ],
    "an empty system message": [{"role": "system", "content": ""}, {"role": "user", "content": [{"type": "image"}]}],
    "several turns": [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "And here?"},
    ],
    "a call": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": "é<"}}}]},
        {"role": "tool", "content": "12 degrees"},
        {"role": "ipython", "content": {"degrees": 12}},
    ],
    "two calls": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}] * 2},
    ],
}
TOOLS = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}]
VARIABLES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "tools": {"tools": TOOLS},
    "tools with the system message": {"tools": TOOLS, "tools_in_user_message": False},
    "custom tools": {"custom_tools": TOOLS},
    "no tools": {"tools": None},
    "a date": {"date_string": "26 Jul 2024"},
    "no prompt": {"add_generation_prompt": False},
}


@pytest.mark.parametrize("variables", VARIABLES)
@pytest.mark.parametrize("messages", MESSAGES)
def test_our_template_writes_what_the_released_one_does(shared: Path, messages: str, variables: str) -> None:
    source = json.loads((shared / RELEASED / "chat_template.json").read_text())["chat_template"]
    given = {"bos_token": "<|begin_of_text|>", "add_generation_prompt": True, **VARIABLES[variables]}
    asked = next(message for message in MESSAGES[messages] if message["role"] == "user")
    if variables in ("tools", "custom tools") and not isinstance(asked["content"], str):
        pytest.skip("the released template writes a Python list here")
    said = []
    for text in (source, OUR_TEMPLATE.read_text()):
        try:
            said.append(environment().from_string(text).render(messages=MESSAGES[messages], **given))
        except TemplateError as error:
            said.append(f"{type(error).__name__}: {error}")
        except Exception as error:  # raise_exception's own
            said.append(str(error))
    assert said[0] == said[1]


def test_tools_and_images_go_together_in_our_template() -> None:
    template = environment().from_string(OUR_TEMPLATE.read_text())
    said = template.render(messages=MESSAGES["an image"], bos_token="<bos>", tools=TOOLS, add_generation_prompt=True)
    assert said.count("<|image|>") == 1
    assert "[{" not in said.partition("Do not use variables.")[2].partition("}\n\n")[2]


@pytest.mark.parametrize(
    ("tokens", "merges", "special", "words"),
    [
        (["a", "b", "a"], [], {"<|begin_of_text|>": 3}, "'a' is in the vocabulary twice"),
        (["a", "b"], ["a b"], {"<|begin_of_text|>": 2}, "'a b' is not of two tokens"),
        (["a", "b", "ab"], ["a"], {"<|begin_of_text|>": 3}, "'a' is not of two tokens"),
        (["a", "b", "ab"], ["a b"], {}, "begin_of_text"),
    ],
)
def test_what_is_no_vocabulary_is_said(
    tokens: list[str], merges: list[str], special: dict[str, int], words: str
) -> None:
    with pytest.raises(CheckpointError, match=words.replace("|", r"\|")):
        llama_tokenizer(tokens, special, merges, "x.gguf")
