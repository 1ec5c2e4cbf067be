import json

import pytest
from typer.testing import CliRunner

from mllama_cli.cli.app import app

run = CliRunner().invoke


@pytest.mark.slow
def test_bench_measures_the_built_in_model() -> None:
    result = run(app, ["bench", "sketch", "--tokens", "2", "--json", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["model"] == "sketch"
    names = [figure["name"] for figure in record["figures"]]
    assert names[:3] == ["load, text", "load, vision", "memory, read"]
    decode = next(figure for figure in record["figures"] if figure["name"] == "decode, text")
    assert decode["bytes_per_token"] > 0
    assert 0 < decode["share_of_bandwidth"] < 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--random", "7b"], "no shape"),
        (["sketch", "--random", "11b"], "exclude"),
        (["sketch", "--quantize", "int4"], "--random"),
    ],
)
def test_what_cannot_be_measured_is_said(arguments: list[str], message: str) -> None:
    result = run(app, ["bench", *arguments])
    assert result.exit_code == 2
    assert message in result.stderr
