"""`mllama bench` on whatever runs the tests."""

import json

import pytest

from tests.console import run_here


@pytest.fixture(autouse=True)
def few_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mllama_cli.benchmark.decode.MAX_SECONDS", 0.1)


def test_every_figure_is_there_and_adds_up() -> None:
    result = run_here("bench", "sketch", "--device", "cpu", "--tokens", "4", "--json")
    assert result.code == 0
    record = json.loads(result.out)
    figures = {figure["name"]: figure for figure in record["figures"]}
    assert list(figures) == [
        "load, text",
        "load, vision",
        "memory, read",
        "vision, 1 tile",
        "vision, 4 tiles",
        "first token, image and 24 tokens",
        "first token, 24 tokens",
        "prefill, 1024 tokens",
        "decode, text",
        "decode, after an image",
        "memory, peak",
        "captions of 64 tokens, 4 tiles, 4 at once",
    ]
    assert all(figure["value"] > 0 for figure in figures.values())
    text, seeing = figures["decode, text"], figures["decode, after an image"]
    assert seeing["bytes_per_token"] > text["bytes_per_token"] > 2_000_000
    read = figures["memory, read"]["value"] * 1e9
    assert text["share_of_bandwidth"] == pytest.approx(text["value"] * text["bytes_per_token"] / read)


def test_where_an_image_takes_long_no_more_than_one_tile_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mllama_cli.benchmark.decode.SLOW_IMAGE_SECONDS", 0.0)
    result = run_here("bench", "sketch", "--device", "cpu", "--tokens", "2", "--json")
    assert result.code == 0
    names = [figure["name"] for figure in json.loads(result.out)["figures"]]
    assert "decode, after an image" in names
    assert not any("4 tiles" in name for name in names)
    assert "more tiles and captions are not measured" in result.err


def test_for_people_it_is_a_table() -> None:
    result = run_here("bench", "sketch", "--device", "cpu", "--tokens", "2", "--image-kv", "fp8")
    assert result.code == 0
    assert "captions of 64 tokens, 4 tiles, 4 at once, fp8 images" in result.out
    assert "tokens/s" in result.out
    assert "of memory bandwidth" in result.out
    assert "float32" in result.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sketch", "--random", "11b"], "mutually exclusive"),
        (["sketch", "--quantize", "int4"], "--quantize needs --random"),
        (["--random", "12b"], "Unknown shape '12b'"),
        (["sketch", "--image-kv", "int4"], "Unknown format of image keys and values 'int4'"),
        (["nowhere"], "no model or folder called 'nowhere'"),
    ],
)
def test_bad_requests_are_one_clear_line(arguments: list[str], message: str) -> None:
    result = run_here("bench", *arguments)
    assert (result.code, result.out) == (2, "")
    assert message in result.error_lines[0]
