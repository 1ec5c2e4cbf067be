"""Check SECURITY.md against the code: the limits, and the categories of the hostile set."""

import re
from functools import reduce
from importlib import import_module
from pathlib import Path

import pytest

from tests.hostile.categories import CATEGORIES

ROOT = Path(__file__).parents[1]
SECURITY = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
LIMITS = re.findall(r"^\| .* \| (.*) \| `([a-z_.]+)\.([A-Z_]+[a-zA-Z_.]*)` \|$", SECURITY, re.MULTILINE)


@pytest.mark.parametrize(("written", "module", "constant"), LIMITS, ids=[constant for _, _, constant in LIMITS])
def test_limits_are_those_of_the_code(written: str, module: str, constant: str) -> None:
    value = reduce(getattr, constant.split("."), import_module(f"mllama_cli.{module}"))
    number, _, unit = written.partition(" ")
    assert int(number.replace(",", "")) * {"": 1, "s": 1, "MB": 10**6, "KiB": 2**10, "MiB": 2**20}[unit] == value


def test_the_table_of_limits_is_read_whole() -> None:
    table = SECURITY.split("## Limits")[1].split("##")[0]
    assert len(LIMITS) == table.count("\n| ") - 1


def test_the_table_of_the_hostile_set_has_its_categories() -> None:
    rows = re.findall(r"^\| (.+?) \| [\d,]+ \| [\d,]+ \| [\d,]+ MB \| [\d.]+ s \|$", SECURITY, re.MULTILINE)
    assert rows == [*CATEGORIES, "all"]


def test_the_readme_leads_to_it() -> None:
    assert "(SECURITY.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
