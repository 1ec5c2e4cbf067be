"""Build the wheel, install it outside this repository, and ask the built-in model as a new user does."""

import os
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*build, "--wheel-dir", folder, ROOT], check=True, timeout=120)
    (file,) = folder.iterdir()
    return file


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the script folder of an environment with the wheel and this environment's other packages."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=120)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    install = [sys.executable, "-m", "pip", "--python", programs / "python", "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*install, wheel], check=True, timeout=120)
    (here,) = folder.rglob("site-packages")
    # Python doesn't read .pth files in a folder that a .pth file adds, so the editable install is not found.
    others = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (here / "others.pth").write_text("\n".join(others), encoding="utf-8")
    return programs


def run(*command: str | Path, cwd: Path) -> str:
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    env |= {"MLLAMA_HOME": str(cwd / "home"), "HF_HUB_CACHE": str(cwd / "hub")}
    return subprocess.run(command, cwd=cwd, env=env, check=True, capture_output=True, text=True, timeout=120).stdout


def test_the_weights_of_the_built_in_model_are_in_it_and_its_trainer_is_not(wheel: Path) -> None:
    with ZipFile(wheel) as file:
        names = [name for name in file.namelist() if name.startswith("mllama_cli/")]
    inside = {path.relative_to(ROOT).as_posix() for path in (ROOT / "mllama_cli" / "sketch" / "weights").iterdir()}
    assert {name for name in names if name.startswith("mllama_cli/sketch/")} == inside
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "mllama_cli").rglob("*.py")}
    assert set(names) >= {name for name in modules if not name.startswith("mllama_cli/sketch/")}


def test_it_installs_the_man_page(environment: Path) -> None:
    installed = environment.parent / "share/man/man1/mllama.1"
    assert installed.read_bytes() == (ROOT / "docs/mllama.1").read_bytes()


def test_installed_it_answers_from_any_folder(environment: Path, tmp_path: Path) -> None:
    where = run(environment / "python", "-c", "import mllama_cli; print(mllama_cli.__file__)", cwd=tmp_path)
    assert environment.parent in Path(where.strip()).parents
    question = ("--image", ROOT / "tests" / "data" / "drawing.png", "What is in this picture?")
    said = run(environment / "mllama", "chat", "--device", "cpu", *question, cwd=tmp_path)
    assert said == "I see 3 red circles, a blue square and a yellow star.\n"
