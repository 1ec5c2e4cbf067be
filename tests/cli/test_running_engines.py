"""Commands that a running engine answers: the same as without one, and nothing heavy imported."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mllama_cli.chat.storage.saved import SavedChat
from mllama_cli.chat.storage.store import ChatStore
from mllama_cli.cli.answerers import COLD_STARTS_WITHIN, is_second_cold_start, warm_engines
from mllama_cli.core.conversation import Conversation, ImagePart
from mllama_cli.remote.client import Client
from mllama_cli.remote.engines import running
from mllama_cli.remote.question import STOP_PATH
from tests.checkpoints import make_checkpoint
from tests.console import SCRIPT, Result, run_here, run_script
from tests.engine.test_adapters import SIMPLE, make_adapter

DATA = Path(__file__).parents[1] / "data"
DRAWING, CARD = str(DATA / "drawing.png"), str(DATA / "card.png")
TIMES = re.compile(r'("\w*seconds?\w*"|"time_to_first_token"): [0-9.]+|at [0-9.]+ tokens/s|TTFT.*|loaded in [0-9.]+ s')

pytestmark = pytest.mark.skipif(os.name == "nt", reason="engines listen on Unix sockets")


@pytest.fixture(scope="module")
def home() -> Iterator[dict[str, str]]:
    """Yield the environment of a user with one engine in the background, which holds the built-in model."""
    folder = Path(tempfile.mkdtemp(prefix="m", dir="/tmp"))  # a longer path would be none for a socket
    (folder / "run").mkdir(mode=0o700)
    env = {
        "MLLAMA_HOME": str(folder / "home"),
        "MLLAMA_CONFIG": str(folder / "config.toml"),
        "XDG_RUNTIME_DIR": str(folder / "run"),
        "XDG_STATE_HOME": str(folder / "state"),
        "HF_HUB_CACHE": str(folder / "hub"),
    }
    started = run_script("chat", "--keep-alive", "5m", "--max-tokens", "1", "Hi", env=env)
    assert started.code == 0, started.err
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", env["XDG_RUNTIME_DIR"])
        yield env
        for address in running():
            Client(address).call("POST", STOP_PATH)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def _this_user(home: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in home.items():
        monkeypatch.setenv(name, value)


def both_ways(home: dict[str, str], *words: str, stdin: bytes = b"") -> tuple[Result, Result]:
    """Return what a command says with the running engine, and what it says with the model in this process."""
    command, *rest = words
    return run_script(*words, env=home, stdin=stdin), run_here(command, "--no-server", *rest, stdin=stdin)


def untimed(text: str) -> str:
    return TIMES.sub("", text)


@pytest.mark.parametrize(
    "words",
    [
        ("Hello",),
        ("--max-tokens", "3", "Hello"),
        ("--no-stream", "--prefill", "Well", "Hello"),
        ("--temperature", "1", "--seed", "7", "--max-tokens", "20", "Hello"),
        ("--json", "-s", "Be brief.", "Hello"),
        ("--json", "-i", DRAWING, "What is this?"),
        ("-i", DRAWING, "-i", CARD, "Compare."),
        ("--raw", "--max-tokens", "4", "Hello"),
        ("--json", "-m", "mllama-sketch", "Hello"),
    ],
    ids=" ".join,
)
def test_an_answer_is_the_same(words: tuple[str, ...], home: dict[str, str]) -> None:
    warm, cold = both_ways(home, "chat", *words)
    assert (warm.code, untimed(warm.out), untimed(warm.err)) == (cold.code, untimed(cold.out), untimed(cold.err))
    assert warm.code == 0
    assert warm.out


@pytest.mark.parametrize(
    ("words", "stdin"),
    [
        (("-i", "-", "What?"), b"not a picture"),
        (("--messages", "-"), b'[{"role": "system", "content": "x"}]'),
        (("Hello " * 5000,), b""),
        (("--raw", "<|image|> Hi"), b""),
    ],
)
def test_an_error_is_the_same(words: tuple[str, ...], stdin: bytes, home: dict[str, str]) -> None:
    warm, cold = both_ways(home, "chat", *words, stdin=stdin)
    assert (warm.code, warm.out, warm.err) == (cold.code, cold.out, cold.err)
    assert warm.code in (1, 2)


def test_captions_are_the_same(home: dict[str, str], tmp_path: Path) -> None:
    for name in ("drawing.png", "card.png", "sideways.jpg"):
        shutil.copy(DATA / name, tmp_path)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    (tmp_path / "same.png").write_bytes((DATA / "card.png").read_bytes())
    warm, cold = both_ways(home, "caption", str(tmp_path), "--output", "-", "--max-tokens", "12")
    rows = [sorted(untimed(result.out).splitlines()) for result in (warm, cold)]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 5
    assert warm.code == cold.code == 3
    [sideways] = [json.loads(row) for row in warm.out.splitlines() if "sideways" in row]
    assert (sideways["width"], sideways["height"]) == (600, 300), "turned upright"


def test_saved_chats_go_on_the_same_way(home: dict[str, str]) -> None:
    picture = ImagePart(Path(DRAWING).read_bytes(), DRAWING)
    begun = Conversation.ask("What is this?", (picture,)).with_assistant("A drawing.")
    stored = [ChatStore().save(SavedChat.new("sketch"), begun) for _ in range(2)]
    assert run_script("chat", "--resume", str(stored[0].id), "How many circles?", env=home).code == 0
    assert run_here("chat", "--resume", str(stored[1].id), "--no-server", "How many circles?", stdin=b"").code == 0
    warm, cold = (ChatStore().load(str(chat.id)) for chat in stored)
    assert len(warm.conversation) == 4
    assert (warm.conversation, warm.model, warm.settings) == (cold.conversation, cold.model, cold.settings)


def test_verbose_says_who_answers(home: dict[str, str]) -> None:
    warm, cold = both_ways(home, "chat", "--verbose", "--max-tokens", "2", "Hi")
    assert f"The running engine on {home['XDG_RUNTIME_DIR']}" in warm.err
    assert "The model is loaded in this process" in cold.err
    alone = run_script("chat", "--verbose", "--max-tokens", "2", "Hi", env={**home, "MLLAMA_NO_SERVER": "1"})
    assert "The model is loaded in this process" in alone.err
    other = run_script("chat", "--verbose", "--max-tokens", "2", "--dtype", "bfloat16", "Hi", env=home)
    assert "The model is loaded in this process" in other.err, "the running engine has another dtype"


HEAVY = [
    *("torch", "numpy", "PIL", "tokenizers", "safetensors", "jinja2", "pydantic", "huggingface_hub"),
    *("httpx", "psutil", "prompt_toolkit", "tomllib"),
]


@pytest.mark.parametrize(
    ("words", "light"),
    [(("chat", "Hi"), ["rich", "sqlite3"]), (("chat", "-i", DRAWING, "What?"), ["rich"]), (("caption", DRAWING), [])],
    ids=["text", "image", "caption"],
)
def test_a_client_imports_nothing_heavy(words: tuple[str, ...], light: list[str], home: dict[str, str]) -> None:
    code = (
        "import sys\n"
        "from mllama_cli.__main__ import main\n"
        f"sys.argv = ['mllama', *{words!r}, '--max-tokens', '2']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        f"print('HEAVY', [name for name in {[*HEAVY, *light]!r} if name in sys.modules])\n"
    )
    # With -P it imports the package that the engine's script does, not one in the current folder, with another model.
    command = [sys.executable, "-P", "-c", code]
    env = {**os.environ, **home}
    done = subprocess.run(command, input="", capture_output=True, text=True, check=True, env=env)
    assert done.stdout.splitlines()[-1] == "HEAVY []", done.stderr


def test_ctrl_c_stops_this_answer_alone(home: dict[str, str]) -> None:
    process = subprocess.Popen(
        [str(SCRIPT), "chat", "--regex", "[a-f ]{1500}", "--max-tokens", "1900", "--no-stdin", "Hello"],
        env={**os.environ, **home},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    first = process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (first + out).endswith(b"\n")
    assert b"Traceback" not in err
    again = run_script("chat", "--verbose", "--max-tokens", "2", "Hi", env=home)
    assert again.code == 0
    assert "The running engine" in again.err


def test_another_machine_answers(home: dict[str, str]) -> None:
    served = subprocess.Popen(
        [str(SCRIPT), "serve", "--port", "0", "--api-key", "secret", "--dtype", "bfloat16"],
        env={**os.environ, **home},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert served.stderr is not None
    try:
        line = next(line for line in served.stderr if "http://" in line)
        address = re.search(r"http://[\w.:]+", line)
        assert address is not None
        there = {**home, "MLLAMA_HOST": address[0], "MLLAMA_API_KEY": "secret"}
        answer = run_script("chat", "--json", "-i", DRAWING, "What is this?", env=there)
        assert json.loads(answer.out)["model"] == "sketch"
        assert "red circles" in run_script("caption", DRAWING, env=there).out
        assert run_script("chat", "-m", "11b", "Hi", env=there).err.startswith(
            f"mllama: The server on {address[0]} holds"
        )
        assert "MLLAMA_HOST names a server" in run_script("chat", "--device", "cpu", "Hi", env=there).err
        assert "MLLAMA_API_KEY" in run_script("chat", "Hi", env={**there, "MLLAMA_API_KEY": "wrong"}).err
        assert "loaded in this process" in run_script("chat", "--no-server", "--verbose", "Hi", env=there).err
    finally:
        served.send_signal(signal.SIGINT)
        served.communicate(timeout=60)
    gone = run_script("chat", "Hi", env=there)
    assert gone.code == 1
    assert f"Nothing answers on {address[0]}" in gone.err


@pytest.mark.parametrize(
    ("words", "variable", "said"),
    [
        (("--keep-alive", "soon"), "", "--keep-alive must be a time such as 10m, not 'soon'"),
        ((), "soon", "MLLAMA_KEEP_ALIVE must be a time such as 10m, not 'soon'"),
        (("--keep-alive", "5m", "--no-server"), "", "--keep-alive and --no-server are mutually exclusive"),
    ],
)
def test_wrong_times(words: tuple[str, ...], variable: str, said: str, home: dict[str, str]) -> None:
    result = run_script("chat", *words, "Hi", env={**home, "MLLAMA_KEEP_ALIVE": variable})
    assert result.code == 2
    assert said in result.err


def test_the_config_file_has_a_time_too(home: dict[str, str]) -> None:
    assert run_script("config", "set", "keep_alive", "soon", env=home).code == 2
    assert run_script("config", "set", "keep_alive", "5m", env=home).code == 0
    try:
        assert Path(home["MLLAMA_CONFIG"]).read_text() == 'keep_alive = "5m"\n'
        assert run_script("chat", "--max-tokens", "2", "Hi", env=home).code == 0
    finally:
        Path(home["MLLAMA_CONFIG"]).unlink()


def test_memory_shortage_names_the_engines_that_hold_some(home: dict[str, str]) -> None:
    assert re.fullmatch(
        r"In memory already: sketch \([\d.]+ [MG]B on cpu\); `mllama stop MODEL` or `mllama stop --all` ends them\.",
        warm_engines(),
    )


def test_the_second_of_two_cold_starts_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert not is_second_cold_start()
    [stamp] = (tmp_path / "mllama").iterdir()
    before = time.time() - 2 * COLD_STARTS_WITHIN
    os.utime(stamp, (before, before))
    assert not is_second_cold_start(), "the first was long ago"
    assert is_second_cold_start()
    assert not is_second_cold_start(), "it has been said"


def test_an_engine_with_adapters_answers_who_asks_for_the_same(home: dict[str, str], tmp_path: Path) -> None:
    painter = tmp_path / "painter"
    make_checkpoint(tmp_path / "base", seed=5)
    make_adapter(painter, SIMPLE)
    model = ("chat", "-m", str(tmp_path / "base"), "--device", "cpu", "--dtype", "float32", "--max-tokens", "8")
    merged = (*model, "--adapter", str(painter))
    started = run_script(*merged, "--keep-alive", "5m", "Hello", env=home)
    assert started.code == 0, started.err
    there, here = both_ways(home, *merged, "--verbose", "Hello")
    assert "The running engine on" in there.err
    assert started.out == there.out == here.out
    without = run_here(*model, "--verbose", "Hello")
    assert "The model is loaded in this process." in without.err
    assert without.out != here.out
