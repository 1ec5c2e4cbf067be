"""The config file: what it may say, `mllama config`, and that flags and environment go before it."""

import json
import os
import stat
from pathlib import Path

import pytest

from mllama_cli.cli.common import read_settings
from mllama_cli.core.errors import UsageError
from mllama_cli.core.settings import KEYS, Settings
from tests.checkpoints import make_checkpoint
from tests.console import Result, run_here


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "folder" / "config.toml"
    monkeypatch.setenv("MLLAMA_CONFIG", str(path))
    return path


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_that_is_not_there_sets_nothing(tmp_path: Path) -> None:
    assert read_settings(tmp_path / "none.toml") == Settings()
    assert Settings().sampling == {}


def test_values_come_as_they_are_written(tmp_path: Path) -> None:
    text = 'model = "11b"\ntemperature = 1\ntop_k = 40\nstop = ["A", "B"]\npreview = false\ntheme = "light"\n'
    settings = read_settings(written(tmp_path / "c.toml", text))
    assert settings == Settings(
        model="11b", sampling={"temperature": 1.0, "top_k": 40, "stop": ("A", "B")}, preview=False, theme="light"
    )


@pytest.mark.parametrize(
    ("text", "says", "hint"),
    [
        ("temprature = 1", "no setting 'temprature'", "Did you mean temperature?"),
        ('temperature = "hot"', "temperature must be a number, not 'hot'", "0 is greedy"),
        ("top_k = 1.5", "top_k must be a whole number", ""),
        ("top_k = true", "top_k must be a whole number", ""),
        ("preview = 1", "preview must be true or false", ""),
        ('theme = "blue"', "theme must be one of auto, dark, light, none, not 'blue'", "colours"),
        ('device = "tpu"', "device must be auto, cpu, cuda, cuda:N, or several such as cuda:0,cuda:1, not 'tpu'", ""),
        ("temperature = -1", "temperature must be 0 or more, not -1.0", "0 is greedy"),
        ('stop = ["A", ""]', "stop must not contain an empty text", ""),
        ("seed = 18446744073709551616", "seed must be from -2^63 to 2^64 - 1", "repeatable"),
        ("temperature = 1" + "0" * 5000, "is not valid TOML", "Example line"),
        ("temperature = 1" + "0" * 400, "more than 100 digits", "Example line"),
        ("stop = " + "[" * 3000, "nested too deeply", "Example line"),
        ("stop = [1]", "stop must be a list of texts", ""),
        ("model = 11b", "is not valid TOML", "Example line"),
    ],
)
def test_mistakes_are_named_with_the_file(tmp_path: Path, text: str, says: str, hint: str) -> None:
    path = written(tmp_path / "c.toml", text)
    with pytest.raises(UsageError) as caught:
        read_settings(path)
    assert str(path) in caught.value.message
    assert says in caught.value.message
    assert hint in caught.value.hint


def test_settings_are_set_shown_and_taken_out(file: Path) -> None:
    assert run_here("config", "path").out == f"{file}\n"
    assert run_here("config", "get", "temperature") == Result(1, "", "")
    for arguments in (("temperature", "0.5"), ("model", "11b"), ("preview", "off"), ("stop", "A", "B"),
                      ("system", "Be", "brief.")):  # fmt: skip
        assert run_here("config", "set", *arguments) == Result(0, "", "")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert read_settings(file) == Settings(
        model="11b", sampling={"temperature": 0.5, "stop": ("A", "B")}, preview=False, system="Be brief."
    )
    assert run_here("config", "get", "preview").out == "false\n"
    assert run_here("config", "unset", "temperature").code == 0
    assert read_settings(file).get("temperature") is None


def test_comments_and_order_stay(file: Path) -> None:
    written(file, '# mine\ntop_k = 3 # few\n\nmodel = "a"\n')
    run_here("config", "set", "top_k", "5")
    assert file.read_text() == '# mine\ntop_k = 5 # few\n\nmodel = "a"\n'
    assert [path.name for path in file.parent.iterdir()] == ["config.toml"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("set", "temprature", "1"), ("set", "top_k", "many"), ("set", "temperature", "-1"), ("set", "top_p", "2"),
        ("set", "theme", "blue"), ("get", "x"), ("unset", "x"), ("set", "model", "two", "words"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_refused_and_nothing_is_written(file: Path, arguments: tuple[str, ...]) -> None:
    result = run_here("config", *arguments)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("mllama: ")
    assert not file.exists()


def test_a_broken_file_is_not_written_over(file: Path) -> None:
    written(file, "model = = 1")
    result = run_here("config", "set", "top_k", "1")
    assert result.code == 2
    assert "not valid TOML" in result.err
    assert file.read_text() == "model = = 1"


def test_show_tells_where_each_value_comes_from(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(file, 'model = "a"\ntop_k = 3\n')
    monkeypatch.setenv("MLLAMA_MODEL", "b")
    shown = json.loads(run_here("config", "show", "--json").out)
    assert set(shown) == set(KEYS)
    assert shown["model"] == {"value": "b", "from": "MLLAMA_MODEL"}
    assert shown["top_k"] == {"value": 3, "from": str(file)}
    assert shown["seed"] == {"value": None, "from": "default"}
    assert any(line.split()[:2] == ["top_k", "3"] for line in run_here("config", "show").out.splitlines())


def test_flags_go_before_the_environment_and_that_before_the_file(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLLAMA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "no-hub"))
    models = [make_checkpoint(tmp_path / "home" / "models" / name) for name in ("a", "b", "c")]
    written(file, f'model = "{models[0].name}"\nmax_tokens = 3\n')

    def asked(*arguments: str) -> tuple[str, int]:
        result = run_here("chat", "--json", *arguments, "hello", stdin=b"")
        assert result.code == 0, result.err
        answer = json.loads(result.out)
        return answer["model"], answer["usage"]["completion_tokens"]

    assert asked() == ("a", 3)
    assert asked("--max-tokens", "2") == ("a", 2)
    monkeypatch.setenv("MLLAMA_MODEL", "b")
    assert asked() == ("b", 3)
    assert asked("-m", "c") == ("c", 3)
    written(file, "max_tokens = 0\n")
    assert run_here("chat", "hello", stdin=b"").code == 2


def test_a_broken_file_is_one_clear_error_in_chat(file: Path) -> None:
    written(file, "colour = 1")
    result = run_here("chat", "hello", stdin=b"")
    assert (result.code, result.out) == (2, "")
    assert "no setting 'colour'" in result.err


def test_a_config_that_is_no_file_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero"), tmp_path / ("x" * 300)):
        monkeypatch.setenv("MLLAMA_CONFIG", str(path))
        for arguments in (("show",), ("set", "seed", "1"), ("get", "seed")):
            result = run_here("config", *arguments)
            assert (result.code, len(result.error_lines)) == (2, 2), result.err


@pytest.mark.skipif(os.name == "nt", reason="links and permissions as POSIX has them")
def test_the_file_is_private_and_written_through_a_link(file: Path, tmp_path: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.symlink_to(tmp_path / "dotfiles.toml")
    assert run_here("config", "set", "system", "Be kind.").code == 0
    assert file.is_symlink()
    assert (tmp_path / "dotfiles.toml").read_text() == 'system = "Be kind."\n'
    assert (tmp_path / "dotfiles.toml").stat().st_mode & 0o777 == 0o600
    (tmp_path / "dotfiles.toml").unlink()
    (tmp_path / "dotfiles.toml").mkdir()
    refused = run_here("config", "set", "seed", "1")
    assert (refused.code, len(refused.error_lines)) == (2, 2)
