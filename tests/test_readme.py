"""The README's two commands: the set-up with a first answer, which is checked here, and the tests, which .ci/run runs.

``tests/docs`` checks everything else in it, as in the pages of docs/.
"""

import re
import shlex
from pathlib import Path

import pytest

from mllama_cli.cli.common import BUILT_IN_NOTE
from tests.console import run_script

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_first_command_says_what_the_readme_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLLAMA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    found = re.search(r"&&\n\.venv/bin/mllama (chat [^\n]*)\n```\n\n```\n(.*?)```", README, re.DOTALL)
    assert found
    result = run_script(*shlex.split(found[1].replace("tests/data", str(ROOT / "tests/data"))))
    assert result.code == 0
    # On a terminal the built-in model is announced.
    assert f"{BUILT_IN_NOTE}\n{result.err}{result.out}" == found[2]


def test_the_tests_have_one_command() -> None:
    (tests,) = re.findall(r"<!-- tests -->\n```bash\n(.*?)```\n<!-- end -->", README, re.DOTALL)
    assert "-m pytest" in tests
