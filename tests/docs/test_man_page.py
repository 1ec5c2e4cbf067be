"""The man page: that it is the one that the commands' help makes, and that man can show it."""

import importlib.util
import shutil
import subprocess

import pytest

from mllama_cli.cli.common import ExitStatus
from tests.cli.test_help import ALL
from tests.conftest import ROOT

PAGE = ROOT / "docs/mllama.1"


def test_the_kept_page_is_made_from_the_commands() -> None:
    spec = importlib.util.spec_from_file_location("man", ROOT / ".github/man.py")
    assert spec is not None
    assert spec.loader is not None
    man = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(man)
    assert PAGE.read_text(encoding="utf-8") == man.man_page(), "run: python .github/man.py"


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
def test_it_shows_every_option_without_warnings() -> None:
    show = ["groff", "-man", "-Tutf8", "-Kutf8", "-ww", "-rLL=80n", "-P-cbou", PAGE]
    done = subprocess.run(show, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert "‘" not in done.stdout
    assert r"\f" not in done.stdout
    words = set(done.stdout.replace(",", " ").split())
    for command in ALL.values():
        for parameter in command.params:
            if parameter.param_type_name == "option" and parameter.name not in ("help", "version"):
                assert words.issuperset(parameter.opts)
    assert words.issuperset(["MLLAMA_MODEL", "MLLAMA_API_KEY", "NO_COLOR", *(str(int(code)) for code in ExitStatus)])
