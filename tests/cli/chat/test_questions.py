"""`mllama chat` with one question, as its users call it."""

import base64
import json
from pathlib import Path

import pytest
from PIL import Image

from mllama_cli.cli.chat_request import ChatInput
from mllama_cli.cli.question import build_question
from mllama_cli.core.conversation import Conversation, ImagePart
from mllama_cli.core.events import Token
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.engine import Engine, load
from mllama_cli.terminal.console import Terminal
from tests.checkpoints import make_checkpoint
from tests.cli.chat.answers import chat, expected
from tests.console import run_script
from tests.decodes import count_png_decodes


def test_one_question_about_a_picture(engine: Engine, png: Path) -> None:
    result = chat("--image", str(png), "What is this?")
    assert result.code == 0
    assert result.out == expected(engine, "What is this?", png)
    assert "\x1b" not in result.out + result.err


def test_piped_text_comes_before_the_prompt(engine: Engine) -> None:
    result = chat("Summarise this", stdin=b"My notes.\n")
    assert result.out == expected(engine, "My notes.\n\nSummarise this")
    assert chat(stdin=b"My notes.\n").out == expected(engine, "My notes.")
    assert chat("-p", "Summarise", "this", stdin=b"").out == expected(engine, "Summarise\n\nthis")


def test_no_stdin_leaves_stdin_alone(engine: Engine) -> None:
    assert chat("--no-stdin", "Hello", stdin=b"not for you").out == expected(engine, "Hello")


def test_a_picture_on_stdin(engine: Engine, png: Path) -> None:
    result = chat("--image", "-", "What is this?", stdin=png.read_bytes())
    assert result.out == expected(engine, "What is this?", png)


def test_a_picture_as_data_url_and_with_tilde(engine: Engine, png: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "data:image/png;base64," + base64.b64encode(png.read_bytes()).decode()
    assert chat("-a", url, "What?").out == expected(engine, "What?", png)
    monkeypatch.setenv("HOME", str(png.parent))
    assert chat("-i", "~/photo.png", "What?").out == expected(engine, "What?", png)


def test_several_pictures_in_order(engine: Engine, png: Path, tmp_path: Path) -> None:
    other = tmp_path / "b.png"
    Image.radial_gradient("L").resize((50, 120)).save(other)
    one = chat("-i", str(png), "-i", str(other), "Differ?")
    assert one.out == expected(engine, "Differ?", png, other)
    assert len({one.out, chat("-i", str(png), "Differ?").out, chat("-i", str(other), "Differ?").out}) == 3
    asked = ChatInput(words=["Differ?"], image=[str(png), str(other)], no_stdin=True)
    images = build_question(asked, Terminal()).images
    assert [image.data for image in images] == [png.read_bytes(), other.read_bytes()]
    assert "latest group" not in one.err, "pictures in one turn all stay visible"


def test_a_picture_without_a_question_is_described_and_says_so(engine: Engine, png: Path) -> None:
    result = chat("-i", str(png))
    assert result.out == expected(engine, "Describe this image.", png)
    assert "Describe this image." in result.err


def test_a_system_message_with_a_picture_is_folded_into_the_question_and_reported(engine: Engine, png: Path) -> None:
    result = chat("-i", str(png), "-s", "Be brief.", "What?")
    assert result.out == expected(engine, "Be brief.\n\nWhat?", png)
    assert "system" in result.err
    assert chat("-s", "Be brief.", "What?").out == expected(engine, "What?", system="Be brief.")


def test_options_reach_the_sampler(engine: Engine) -> None:
    hot = Sampling(temperature=1.3, top_p=0.8, top_k=50, min_p=0.01, repetition_penalty=1.2, seed=7, max_tokens=12)
    flags = "--temp=1.3 --top-p=0.8 --top-k=50 --min-p=0.01 --repetition-penalty=1.2 --seed=7"
    assert chat(*flags.split(), "Hello").out == expected(engine, "Hello", sampling=hot)


def test_stop_strings_end_the_answer(engine: Engine) -> None:
    free = expected(engine, "Hello")
    stop = next(c for c in free if c.isalnum())
    assert chat("--stop", stop, "Hello").out.rstrip("\n") == free[: free.index(stop)].rstrip("\n")


def test_json_is_one_object_with_answer_counts_and_timings(engine: Engine, png: Path) -> None:
    result = chat("--json", "-i", str(png), "What?")
    record = json.loads(result.out)
    assert record["answer"].rstrip("\n") + "\n" == expected(engine, "What?", png)
    assert record["finish_reason"] == "length"
    assert record["usage"]["completion_tokens"] == 12
    assert record["usage"]["images"] == 1
    assert record["usage"]["prompt_tokens"] > 20
    assert record["timings"]["time_to_first_token"] > 0
    assert record["model"] == "tiny"


def test_no_stream_and_verbose(engine: Engine) -> None:
    result = chat("--no-stream", "--verbose", "Hello")
    assert result.out == expected(engine, "Hello")
    assert "tokens/s" in result.err


def test_an_answer_cut_at_the_limit_is_not_cut_silently() -> None:
    assert "12 tokens (--max-tokens)" in chat("Hello").err


def test_base_models_take_the_raw_prompt(png: Path, tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "base", seed=3, template=None)
    refused = chat("-m", str(base), "Hello")
    assert refused.code == 1
    assert "--raw" in refused.err
    raw = chat("-m", str(base), "--raw", "-i", str(png), "If I had to write")
    assert raw.code == 0
    engine = load(base, device="cpu", vision=True)
    inputs = engine.processor.raw("If I had to write", [ImagePart(png.read_bytes())])
    assert inputs.ids[:2] == (engine.processor.image_token_id, 256), "begin_of_text follows the leading image token"
    events = engine.session().stream_inputs(inputs, Sampling(max_tokens=12))
    assert raw.out.rstrip("\n") == "".join(e.text for e in events if isinstance(e, Token)).rstrip("\n")


def test_an_image_is_decoded_once(png: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decodes = count_png_decodes(monkeypatch)
    assert chat("-i", str(png), "What?").code == 0
    assert len(decodes) == 1


def test_an_image_is_decoded_once_in_a_library_too(engine: Engine, png: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decodes = count_png_decodes(monkeypatch)
    talk = Conversation.ask("What?", (ImagePart(png.read_bytes()),))
    list(engine.stream(talk, Sampling(max_tokens=2)))
    assert len(decodes) == 1


def test_a_tiny_picture_is_fine(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    assert chat("-i", str(tmp_path / "dot.png"), "What?").code == 0


def test_special_tokens_in_a_message_are_plain_text(engine: Engine) -> None:
    text = "a <|image|> and <|eot_id|>"
    result = chat(text)
    assert result.code == 0
    ids = engine.processor(Conversation.ask(text)).ids
    assert engine.processor.image_token_id not in ids
    assert text in engine.processor.tokenizer.decode(ids)


def test_the_model_comes_from_the_environment(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = make_checkpoint(tmp_path / "other", seed=9)
    monkeypatch.setenv("MLLAMA_MODEL", str(other))
    assert chat("Hello").out == expected(load(other, device="cpu"), "Hello")
    assert chat("-m", "tiny", "Hello").out == expected(engine, "Hello"), "the flag overrides it"


def test_through_the_console_script(engine: Engine, png: Path) -> None:
    result = run_script("chat", "-i", str(png), "--max-tokens", "12", "What?")
    assert result.code == 0
    assert result.out == expected(engine, "What?", png)
