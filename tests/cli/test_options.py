"""Options that are declared once: where each of them must then be found, and that they are checked early."""

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from mllama_cli.chat.commands.registry import find_command
from mllama_cli.cli.common import read_settings
from mllama_cli.cli.options import ComputeOptions, SamplingOptions, option_groups
from mllama_cli.core.config import GenerationConfig
from mllama_cli.core.errors import UsageError
from mllama_cli.core.sampling import PARAMETERS, SETTABLE, Sampling
from mllama_cli.core.settings import KEYS, Settings
from tests.checkpoints import make_checkpoint
from tests.console import run_here

CHAT_PAGE = (Path(__file__).parents[2] / "docs/chat.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", ["chat", "caption"])
def test_every_sampling_parameter_is_a_flag(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown = run_here(command, "--help").out
    for parameter in SETTABLE.values():
        assert re.search(rf"{parameter.flag}\b", shown)
        assert f"{parameter.help[0].upper()}{parameter.help[1:]}." in shown


def test_every_sampling_parameter_is_a_setting_and_documented() -> None:
    shown = run_here("config", "show").out
    for name, parameter in SETTABLE.items():
        assert KEYS[name] is parameter
        assert f"\n{name} " in shown
        assert f"`{parameter.flag}`" in CHAT_PAGE


def test_every_sampling_parameter_can_be_set_in_a_chat() -> None:
    shell: Any = SimpleNamespace(dialogue=SimpleNamespace(sampling=Sampling()))
    for parameter in SETTABLE.values():
        for name in (parameter.name, parameter.name.replace("_", "-"), *parameter.aliases):
            found = find_command(f"/set parameter {name}")
            assert found is not None
            with pytest.raises(UsageError, match=f"{parameter.name} needs a value") as caught:
                found[0].run(shell, found[1])
            assert parameter.help in caught.value.hint


def test_what_is_for_the_library_alone_is_nowhere_else(tmp_path: Path) -> None:
    assert set(PARAMETERS) - set(SETTABLE) == {"logit_bias", "logprobs"}
    assert run_here("chat", "--logprobs", "3", "Hi").code == 2
    assert run_here("config", "set", "logprobs", "3").code == 2
    (tmp_path / "c.toml").write_text("logprobs = 3")
    with pytest.raises(UsageError, match="no setting 'logprobs'"):
        read_settings(tmp_path / "c.toml")


def test_a_group_is_spelled_out_in_its_place_and_comes_as_one_object() -> None:
    app, got = typer.Typer(), {}

    @app.command()
    @option_groups
    def command(
        *,
        before: bool = False,
        compute: ComputeOptions,
        sampling: SamplingOptions,
        after: Annotated[int, typer.Option(help="Last.")] = 1,
    ) -> None:
        got.update(before=before, compute=compute, sampling=sampling, after=after)

    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "120"}).stdout
    flags = "--before", "--after", "--model", "--exact", "--temperature", "--presence-penalty", "--stop"
    assert all(flag in shown for flag in flags)
    line = "--before --device cpu --exact --temp 1 --top-k 5 --presence-penalty -0.5 --stop A --stop B"
    assert CliRunner().invoke(app, line.split(), env={"MLLAMA_MODEL": ""}, catch_exceptions=False).exit_code == 0
    assert got == {
        "before": True,
        "compute": ComputeOptions(device="cpu", exact=True),
        "sampling": {"temperature": 1.0, "top_k": 5, "presence_penalty": -0.5, "stop": ("A", "B")},
        "after": 1,
    }
    assert Sampling.from_defaults(GenerationConfig(), **got["sampling"]).stop == ("A", "B")
    CliRunner().invoke(app, [], env={"MLLAMA_MODEL": ""}, catch_exceptions=False)
    assert (got["compute"], got["sampling"]) == (ComputeOptions(), {})


def test_flags_go_before_the_environment_and_that_before_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLLAMA_MODEL", raising=False)
    settings = Settings(model="file", device="cpu", dtype="float16")
    assert ComputeOptions().with_defaults(settings) == ComputeOptions("file", "cpu", "float16")
    monkeypatch.setenv("MLLAMA_MODEL", "environment")
    assert ComputeOptions(dtype="float32").with_defaults(settings) == ComputeOptions("environment", "cpu", "float32")
    assert ComputeOptions("flag", "cuda:1").with_defaults(settings) == ComputeOptions("flag", "cuda:1", "float16")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--temperature -1", "Temperature must be 0 or more, not -1.0"),
        ("--frequency-penalty 3", "Frequency-penalty must be from -2 to 2, not 3.0"),
        ("--device tpu", "--device must be auto, cpu, cuda, cuda:N, or several such as cuda:0,cuda:1, not 'tpu'"),
        ("--dtype int3", "--dtype must be one of auto, bfloat16, float16, float32, not 'int3'"),
        ("--quantize int5", "Unknown quantization 'int5'"),
        ("-m nowhere", "nowhere"),
        ("--messages missing.json", "missing.json"),
    ],
)
@pytest.mark.parametrize("command", ["chat", "caption"])
def test_a_wrong_request_fails_before_torch_is_imported(
    command: str, flags: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if command == "caption" and "--messages" in flags:
        pytest.skip("caption reads no conversation")
    monkeypatch.setenv("MLLAMA_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "no-hub"))
    make_checkpoint(tmp_path / "models" / "tiny")
    (tmp_path / "photo.png").write_bytes((Path(__file__).parents[1] / "data/sideways.jpg").read_bytes())
    asked = [command, *flags.split(), *(["Hi"] if command == "chat" else [str(tmp_path / "photo.png")])]
    code = (
        "import sys\n"
        "from mllama_cli.__main__ import main\n"
        f"sys.argv = ['mllama', *{asked!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    print(end.code, 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "2 False\n"
    assert message in done.stderr.splitlines()[0]
