"""What `mllama chat` refuses, in one clear line."""

from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from tests.checkpoints import make_checkpoint, text_only_config
from tests.cli.chat.answers import chat
from tests.console import run_here, run_script


def broken(name: str, png: Path, folder: Path) -> str:
    path = folder / name
    match name:
        case "folder.png":
            path.mkdir()
        case "text.png":
            path.write_text("not a picture")
        case "truncated.jpg":
            buffer = BytesIO()
            Image.effect_noise((300, 300), 90).save(buffer, "JPEG")
            path.write_bytes(buffer.getvalue()[:2000])
        case "empty.png":
            path.touch()
        case "bomb.png":
            Image.new("1", (20000, 20000)).save(path)
    return str(path)


@pytest.mark.parametrize(
    ("name", "code"),
    [("missing.png", 2), ("folder.png", 2), ("text.png", 1), ("truncated.jpg", 1), ("empty.png", 1), ("bomb.png", 1)],
)
def test_a_bad_picture_is_one_clear_error_before_anything_is_loaded(
    name: str, code: int, png: Path, models: Path, tmp_path: Path
) -> None:
    hollow = tmp_path / "hollow"  # a model without weights and tokenizer: to load it would be an error
    hollow.mkdir()
    for file in ("config.json", "preprocessor_config.json"):
        (hollow / file).write_bytes((models / "models" / "tiny" / file).read_bytes())
    result = chat("-m", str(hollow), "-i", broken(name, png, tmp_path), "What?")
    assert result.code == code
    assert result.out == ""
    assert name in result.err
    assert "Traceback" not in result.err
    assert len(result.error_lines) <= 2


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        ([], None, "nothing to ask"),
        ([], b"", "nothing to ask"),
        (["", "-p", " "], b"\n", "nothing to ask"),
        (["Hi", "--temperature", "-1"], None, "Temperature"),
        (["Hi", "--device", "tpu"], None, "tpu"),
        (["Hi", "--dtype", "int3"], None, "int3"),
        (["Hi", "-m", "no-such-model"], None, "no-such-model"),
        (["-i", "-", "--messages", "-"], b"x", "stdin"),
        (["-i", "-", "Hi"], None, "terminal"),
        (["--messages", "no-talk.json", "Hi"], None, "no-talk.json"),
        (["--messages", "talk.json", "--system", "Hi"], None, "--system"),
        (["Hi"], b"\xff\xfe\x00", "UTF-16"),
        (["Hi"], b"\xe9t\xe9", "UTF-8"),
        (["Hi"], b"word " * 2**20, "stdin is larger than 4 MiB"),
        (["--messages", "/dev/zero"], None, "/dev/zero is neither a file nor a pipe"),
        (["--messages", "-"], b"[" * 2**24 + b"[", "stdin is larger than 16 MiB"),
        (["Hi", "--seed", "18446744073709551616"], None, "Seed must be from"),
        (["Hi", "--seed", "9" * 5000], None, "seed"),
        (["--no-such-flag"], None, "--no-such-flag"),
    ],
)
def test_usage_errors_exit_2_with_a_reason(arguments: list[str], stdin: bytes | None, message: str) -> None:
    result = chat(*arguments, stdin=stdin)
    assert result.code == 2
    assert message in result.err
    assert result.out == ""


def test_further_pictures_without_a_flag_are_not_read_as_text(png: Path, tmp_path: Path) -> None:
    other = tmp_path / "b.png"
    other.write_bytes(png.read_bytes())
    result = chat("-i", str(png), str(other), "What?")
    assert result.code == 2
    assert f"-i {other}" in result.err


def test_cuda_asked_for_but_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    result = run_here("chat", "--device", "cuda", "Hi")
    assert result.code == 2
    assert "CUDA" in result.err


def test_context_length_exceeded_says_by_how_much() -> None:
    result = chat(stdin=b"x" * 2100)
    assert result.code == 1
    assert "more than this model can read" in result.err


def test_text_only_models_refuse_pictures(png: Path, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "text", text_only_config())
    assert chat("-m", str(folder), "Hello").code == 0
    result = chat("-m", str(folder), "-i", str(png), "What?")
    assert result.code == 2
    assert "text-only" in result.err


def test_too_little_memory_is_said_before_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    class Free:
        available = 1000

    monkeypatch.setattr("psutil.virtual_memory", Free)
    result = chat("--dtype", "bfloat16", "Hi")
    assert result.code == 1
    assert "GiB" in result.err


@pytest.mark.parametrize("debug", [False, True])
def test_debug_shows_the_traceback(debug: bool) -> None:
    result = run_script("chat", "-i", "missing.png", "Hi", *(["--debug"] if debug else []))
    assert ("Traceback" in result.err) == debug
    assert result.code == (1 if debug else 2)
