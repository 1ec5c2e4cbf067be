"""What users type or set that once ended in a traceback, a password on the screen or a blind answer."""

import base64
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mllama_cli.core.errors import MllamaError
from mllama_cli.hub.client import require_client
from mllama_cli.processing.sources import read_image
from tests.console import SCRIPT, run_here, run_script

PHOTO = Path(__file__).parents[1] / "data" / "drawing.png"
BASE64 = base64.b64encode(PHOTO.read_bytes()).decode()


@pytest.mark.parametrize(
    "address",
    [
        "http://bob:hunter2@127.0.0.1:99999/x",
        "http://bob:hunter2@[::1/x",
        "http://bob:hun ter2@host/x",
        "http://bob:hunter2@/x",
        "http://bob:hun\x01ter2@host/x",
        "http://bob:hun/ter2@host.invalid/x",
        "http://bob:hun#ter2@host.invalid/x",
        "http://bob:hun?ter2@host.invalid/x",
        f"http://bob:hunter2{'A' * 70_000}@host.invalid/x",
        "ftp://bob:hunter2@host/x",
        "file://bob:hunter2@host/x",
        "file://bob:hunter2@[host/x",
        "http:/bob:hunter2@host/x",
        "http:/bob:hun/ter2@host/x.png",
        "  http://bob:hunter2@[::1/x",
    ],
    ids=lambda address: repr(address[:36]),
)
def test_no_error_shows_a_password(address: str) -> None:
    with pytest.raises(MllamaError) as caught:
        read_image(address)
    for shown in (caught.value.message, caught.value.hint, str(caught.value)):
        assert "hun" not in shown
        assert "ter2" not in shown


@pytest.mark.parametrize(
    "text", [BASE64, f" {BASE64}\n", BASE64.rstrip("="), base64.encodebytes(PHOTO.read_bytes()).decode()]
)
def test_base64_of_a_picture_is_a_picture(text: str) -> None:
    assert read_image(text).data == PHOTO.read_bytes()


@pytest.mark.parametrize("text", [f" data:image/png;base64,{BASE64}", f"\n{PHOTO.as_uri()} "])
def test_blanks_around_an_address_are_no_part_of_it(text: str) -> None:
    assert read_image(text).data == PHOTO.read_bytes()


@pytest.mark.parametrize("text", ["A" * 5000, "a/" * 3000, base64.b64encode(b"no picture" * 600).decode()])
def test_a_long_text_that_is_no_picture_is_one_short_line(text: str) -> None:
    result = run_here("chat", "-m", "sketch", "-i", text, "What is this?")
    assert result.code == 2
    assert all(len(line) <= 500 for line in result.error_lines)
    assert "no such picture" in result.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("caption", str(PHOTO), "--prompt-file", "~nosuch/x"),
        ("caption", "--files-from", "~nosuch/x"),
        ("chat", "--messages", "~nosuch/x"),
        ("chat", "--messages", "x" * 300),
        ("chat", "-i", "~nosuch/x.png", "Hi"),
        ("show", "~nosuch/x"),
        ("show", "x" * 300),
    ],
    ids=lambda arguments: " ".join(arguments)[:40],
)
def test_paths_that_cannot_exist_are_one_error(arguments: tuple[str, ...]) -> None:
    result = run_here(*arguments)
    assert result.code == 2
    assert len(result.error_lines) <= 2
    assert result.error_lines[0].startswith("mllama: ")


@pytest.mark.parametrize(
    "words", [f"{'word ' * 60} name this picture shapes.png", "~5 shapes? name them like shapes.png"]
)
def test_a_prompt_that_ends_like_a_picture_is_a_prompt(words: str) -> None:
    result = run_here("chat", "-m", "sketch", "-i", str(PHOTO), "--max-tokens", "2", words)
    assert result.code == 0, result.err


@pytest.mark.parametrize("arguments", [("chat", "-m", "sketch", "Hi"), ("caption", "x.png"), ("list",)])
def test_a_folder_that_is_gone(arguments: tuple[str, ...], tmp_path: Path) -> None:
    code = f"mkdir {tmp_path}/d; cd {tmp_path}/d; rmdir ../d; exec {SCRIPT} {' '.join(arguments)}"
    done = subprocess.run(["sh", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == "mllama: The current folder is gone, or may not be read"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_any_encoding_of_the_terminal_will_do(encoding: str, tmp_path: Path) -> None:
    env = {"PYTHONIOENCODING": encoding, "MLLAMA_HOME": str(tmp_path / "\u043f\u0443\u0442\u044c")}
    done = run_script("show", "sketch", env=env)
    assert done.code == 0
    assert run_script("config", "path", env={**env, "MLLAMA_CONFIG": "/\u043f\u0443\u0442\u044c"}).out == "/????\n"


@pytest.mark.parametrize(
    "proxy", ["socks5://127.0.0.1:9", "foo://host:1", "http://bob:hun/ter2@host:1", "http://bob:hunter2@host:port"]
)
def test_a_proxy_that_cannot_be_used_is_one_error(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import close_session

    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "NO_PROXY", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ALL_PROXY", proxy)
    monkeypatch.setitem(sys.modules, "socksio", None)
    close_session()
    for client in (require_client, lambda: read_image("http://host.invalid/a.png")):
        with pytest.raises(MllamaError, match="the proxy setting cannot be used") as caught:
            client()
        assert "hun" not in caught.value.message
    close_session()


@pytest.mark.skipif(os.name == "nt", reason="signals as POSIX has them")
@pytest.mark.parametrize("module", ["typer", "mllama_cli.cli.app", "mllama_cli.cli.chat", "mllama_cli.cli.options"])
def test_ctrl_c_while_importing_is_silent(module: str, tmp_path: Path) -> None:
    # The import system itself sends the signal, so that no time has to be guessed.
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    env = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = run_script("chat", "--help", env=env)
    assert done.code in (-signal.SIGINT, 130)
    assert done.err == ""
