"""LoRA adapters as a person uses them: --adapter on every command that loads a model, and show."""

import json
from pathlib import Path

import pytest

from mllama_cli.engine.engine import load
from tests.checkpoints import make_checkpoint
from tests.console import Result, run_here
from tests.engine.test_adapters import SIMPLE, differences, edited, make_adapter, weights_of

CPU = ("--device", "cpu", "--dtype", "float32")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a model and an adapter for it."""
    folder = tmp_path_factory.mktemp("adapters")
    make_checkpoint(folder / "base", seed=5)
    make_adapter(folder / "painter", SIMPLE)
    edited(folder / "painter", base_model_name_or_path="owner/base")
    return folder / "base", folder / "painter"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLLAMA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def ask(model: Path | str, *more: str) -> Result:
    return run_here("chat", "-m", str(model), *CPU, "--max-tokens", "12", *more, "Hello", stdin=b"")


def test_chat_answers_with_the_adapter(folders: tuple[Path, Path]) -> None:
    base, adapter = folders
    plain, changed = ask(base), ask(base, "--adapter", str(adapter))
    assert (plain.code, changed.code) == (0, 0), changed.err
    assert plain.out != changed.out


def test_a_quantized_model_holds_the_adapter(folders: tuple[Path, Path], home: Path) -> None:
    base, adapter = folders
    result = run_here("quantize", str(base), "--bits", "8", "--adapter", str(adapter))
    made = home / "models" / "base-painter-int8"
    assert (result.code, result.out) == (0, f"{made}\n"), result.err
    loaded = load(made, device="cpu", dtype="float32", vision=True)
    expected = weights_of(load(base, device="cpu", dtype="float32", vision=True, adapters=adapter))
    kept = {name: tensor for name, tensor in weights_of(loaded).items() if name in expected}
    assert any("vision_model" in name and "q_proj" in name for name in kept)
    assert not differences(kept, expected)
    assert ask(made).out == ask(base, "--adapter", str(adapter), "--quantize", "int8").out


def test_captions_made_with_another_adapter_are_another_run(folders: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = folders
    picture = Path(__file__).parents[1] / "data" / "card.png"
    command = ("caption", str(picture), "-m", str(base), *CPU, "--max-tokens", "4")
    plain, changed = run_here(*command), run_here(*command, "--adapter", str(adapter))
    assert (plain.code, changed.code) == (0, 0), changed.err
    assert plain.out != changed.out


def test_an_adapter_named_as_a_model_says_how_to_use_it(folders: tuple[Path, Path]) -> None:
    result = ask(folders[1])
    assert result.code == 1
    assert "is a LoRA adapter for owner/base" in result.err
    assert f"-m owner/base --adapter {folders[1]}" in result.err


def test_show_describes_an_adapter(folders: tuple[Path, Path]) -> None:
    shown = run_here("show", str(folders[1]))
    assert (shown.code, shown.err) == (0, "")
    for words in ("LoRA adapter, rank 8, alpha 16", "22 layers (10 text, 12 vision)", "owner/base"):
        assert words in shown.out
    record = json.loads(run_here("show", str(folders[1]), "--json").out)
    assert (record["ranks"], record["base"], record["modules"]) == ([8], "owner/base", {"text": 10, "vision": 12})


def test_what_does_not_fit_fails_in_two_lines(folders: tuple[Path, Path], tmp_path: Path) -> None:
    base, _ = folders
    for given, words in ((tmp_path, "is not an adapter"), (tmp_path / "absent", "is not a folder")):
        result = ask(base, "--adapter", str(given))
        assert (result.code, result.out, len(result.error_lines)) == (1, "", 2), result.err
        assert words in result.err


def test_bench_measures_a_model_with_an_adapter(folders: tuple[Path, Path]) -> None:
    base, adapter = folders
    result = run_here("bench", str(base), "--adapter", str(adapter), "--device", "cpu", "--tokens", "2", "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["adapters"] == [str(adapter)]
    refused = run_here("bench", "--random", "11b", "--adapter", str(adapter))
    assert (refused.code, refused.out) == (2, "")
