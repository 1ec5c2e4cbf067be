"""Run each program of examples/ with the built-in model, as its first lines say."""

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from contextlib import redirect_stdout, suppress
from io import StringIO
from pathlib import Path

import httpx
import pytest

from mllama_cli import load
from tests.conftest import ROOT
from tests.console import SCRIPT
from tests.serving.running import serving

EXAMPLES = ROOT / "examples"
DATA = ROOT / "tests/data"


def test_slurm(tmp_path: Path) -> None:
    for module in ("fsspec", "pyarrow"):
        pytest.importorskip(module)
    with tarfile.open(tmp_path / "00000.tar", "w") as shard:
        shard.add(DATA / "drawing.png", "one.png")
    captions = tmp_path / "captions"
    env = {
        **os.environ,
        "PATH": f"{SCRIPT.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "MLLAMA_MODEL": "sketch",
    }
    command = ["bash", EXAMPLES / "slurm.sh", tmp_path / "00000.tar", captions, "--format", "webdataset"]
    subprocess.run(command, env=env, check=True, timeout=120)
    with tarfile.open(captions / "00000.tar") as done:
        assert "one.txt" in done.getnames()


def test_kubernetes(tmp_path: Path) -> None:
    """Run the command of kubernetes.yaml: a picture that cannot be captioned does not fail its pod."""
    yaml, parquet = pytest.importorskip("yaml"), pytest.importorskip("pyarrow.parquet")
    job = yaml.safe_load((EXAMPLES / "kubernetes.yaml").read_text())
    (container,) = job["spec"]["template"]["spec"]["containers"]
    for index, name in enumerate(("drawing.png", "make_pictures.py")):
        with tarfile.open(tmp_path / f"0000{index}.tar", "w") as shard:
            shard.add(DATA / name, "one.png")
    given = {each["name"]: each["value"] for each in container["env"]}
    assert given.keys() == {"SHARDS", "CAPTIONS", "MLLAMA_MODEL"}
    env = {
        **os.environ,
        "PATH": f"{SCRIPT.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "SHARDS": f"{tmp_path}/{{00000..00001}}.tar",
        "CAPTIONS": str(tmp_path / "captions"),
        "MLLAMA_MODEL": "sketch",
    }
    done = subprocess.run(
        [*container["command"], *container["args"]], env=env, check=True, timeout=120, capture_output=True, text=True
    )
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["shards_done"], summary["pictures"], summary["failed"]) == (2, 1, 1)
    rows = parquet.read_table(tmp_path / "captions/00001.parquet").to_pylist()
    assert "not a picture" in rows[0]["error"]


@pytest.mark.slow
def test_ray_serve(tmp_path: Path) -> None:
    """Serve ray_serve.py."""
    pytest.importorskip("ray.serve", exc_type=ImportError, reason="Ray Serve is not installed (ray[serve])")
    command = [sys.executable, "-m", "ray.serve.scripts", "run", "examples.ray_serve:app", "model=sketch", "gpus=0"]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": path, "RAY_USAGE_STATS_ENABLED": "0"}
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log) as app,
    ):
        try:
            for _ in range(120):
                with suppress(httpx.TransportError):
                    answer = httpx.post(
                        "http://127.0.0.1:8000/", content=(DATA / "drawing.png").read_bytes(), timeout=60
                    )
                    if answer.status_code == 200:
                        break
                time.sleep(1)
            bad = httpx.post("http://127.0.0.1:8000/", content=b"<html>404</html>", timeout=60)
        finally:
            app.send_signal(signal.SIGINT)
            app.wait(60)
    assert answer.json()["caption"] == "I see 3 red circles, a blue square and a yellow star."
    assert "not a picture" in bad.json()["error"]


def run_program(name: str, *arguments: str, **env: str) -> str:
    """Run an example in a process of its own; return what it prints."""
    here = {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "1", "MLLAMA_MODEL": "sketch"}
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments],
        env={**os.environ, **here, **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def run(name: str, *arguments: str, **env: str) -> str:
    """Run an example in this process, which has imported torch already; return what it prints."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as shown:
        patch.setattr(sys, "argv", [str(EXAMPLES / name), *arguments])
        for variable, value in {"MLLAMA_MODEL": "sketch", **env}.items():
            patch.setenv(variable, value)
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return shown.getvalue()


@pytest.fixture(autouse=True)
def _no_other_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLLAMA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


def test_describe() -> None:
    shown = run_program("describe.py", str(DATA / "drawing.png"))
    assert shown == "I see 3 red circles, a blue square and a yellow star.\n"


def test_chat_with_memory() -> None:
    questions = "How many circles are there?", "What colour is the star?"
    shown = run("chat_with_memory.py", str(DATA / "drawing.png"), *questions).splitlines()
    assert shown[:2] == ["> How many circles are there?", "There are 3 circles."]
    assert shown[3:5] == ["> What colour is the star?", "The star is yellow."]
    assert "(17 tokens of prompt, 0 of them read before)" in shown
    assert not shown[5].endswith(" 0 of them read before)")


def test_search_index(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("drawing.png", "before.png"):
        shutil.copy(DATA / name, photos)
    found = run("search_index.py", str(photos), "yellow star")
    assert found == f"{photos}/drawing.png: I see 3 red circles, a blue square and a yellow star.\n"
    for file in photos.glob("*.png"):
        file.write_bytes(b"read once")
    assert run("search_index.py", str(photos), "yellow star") == found
    assert run("search_index.py", str(photos), "zebra") == ""


def test_receipt() -> None:
    receipt = json.loads(run("receipt.py", str(DATA / "card.png")))
    assert receipt.keys() == {"shop", "date", "items", "total"}
    assert all(item.keys() == {"name", "price"} for item in receipt["items"])


def test_server_batch() -> None:
    with serving(load("sketch", device="cpu", vision=True)) as server:
        images = [str(DATA / name) for name in ("drawing.png", "card.png", "drawing.png")]
        shown = run("server_batch.py", "What is in this picture?", *images, OPENAI_BASE_URL=f"{server.url}/v1")
    answers = [line.partition(": ")[2] for line in shown.splitlines()]
    assert answers[0] == answers[2] == "I see 3 red circles, a blue square and a yellow star."
    assert len(answers) == 3


@pytest.mark.parametrize("file", sorted([*EXAMPLES.glob("*.py"), *EXAMPLES.glob("*.sh")]), ids=lambda file: file.name)
def test_an_example_is_short_and_tested(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) < 40
    tests = (ROOT / "tests").rglob("test_*.py")
    assert any(file.name in each.read_text(encoding="utf-8") for each in tests), "no test runs it"
