"""`mllama quantize` as a person runs it, and what list, show and chat make of the result."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoints import config_dict, make_checkpoint, text_only_config
from tests.console import SCRIPT, Result, run_here, run_script


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLLAMA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "home"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "small")


def assert_fails(result: Result, code: int, *words: str) -> None:
    """One line that says what is wrong, one that says what to do; no traceback; nothing on stdout."""
    assert (result.code, result.out) == (code, ""), result.err
    lines = [line for line in result.error_lines if not line.startswith(("Quantizing ", "Groups of "))]
    assert len(lines) == 2, result.err
    assert lines[0].startswith("mllama: ")
    for word in words:
        assert word in result.err


def test_the_folder_is_printed_and_the_name_works_everywhere(source: Path, home: Path) -> None:
    result = run_here("quantize", str(source))
    made = home / "models" / "small-int4"
    assert (result.code, result.out) == (0, f"{made}\n"), result.err
    assert "bits per weight" in result.err
    assert "4-bit: relative squared error" in result.err
    assert "\x1b" not in result.err
    listed = run_here("list").out
    assert "small-int4" in listed
    assert "quantized to 4 bits" in listed
    answer = run_script("chat", "-m", "small-int4", "--max-tokens", "4", "--device", "cpu", "Hello")
    assert answer.code == 0, answer.err
    assert answer.out


def test_show_tells_what_is_in_it(source: Path) -> None:
    run_here("quantize", str(source))
    plain, made = (json.loads(run_here("show", name, "--json").out) for name in (str(source), "small-int4"))
    assert made["parameters"] == plain["parameters"]
    size = sum(file.stat().st_size for file in Path(made["path"]).glob("*.safetensors"))
    assert made["bits_per_weight"] == pytest.approx(8 * size / made["parameters"]["total"], rel=0.05)
    assert set(made["packed"]["text"]) == set(made["packed"]["cross-attention"]) == {"int4", "int8"}
    assert made["packed"]["vision"] == {}
    assert made["stored"]["INT4"] + made["stored"]["INT8"] + made["stored"]["F32"] == made["parameters"]["total"]
    shown = run_here("show", "small-int4").out
    assert "bits per weight" in shown
    assert "int4/int8" in shown


@pytest.mark.parametrize(
    ("arguments", "name"),
    [((), "small-int4"), (("--bits", "8"), "small-int8"), (("--group-size", "32"), "small-int4-g32"),
     (("--bits", "8", "--group-size", "channel"), "small-int8-channel"), (("mine",), "mine")],
)  # fmt: skip
def test_names_next_to_the_models(source: Path, home: Path, arguments: tuple[str, ...], name: str) -> None:
    result = run_here("quantize", str(source), *arguments, "--method", "rtn")
    assert result.out == f"{home / 'models' / name}\n", result.err
    # By its name, as an installed model, too.
    (home / "models" / "local").symlink_to(source)
    assert run_here("quantize", "local", "--dry-run").out.rstrip().endswith("local-int4")


def test_a_path_is_a_path(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_here("quantize", "small", "./here").out == f"{tmp_path / 'here'}\n"


def test_dry_run_says_all_and_writes_nothing(source: Path, home: Path) -> None:
    result = run_here("quantize", str(source), "--dry-run", "--keep", "layers.0.*")
    assert result.code == 0, result.err
    for words in ("BECOME", "lm_head", "8 bit, per channel", "4 bit, groups of", "vision tower", "embeddings",
                  "bits per weight", "free disk", "memory to quantize", "memory to run", "small-int4"):  # fmt: skip
        assert words in result.out
    assert not home.exists()
    record = json.loads(run_here("quantize", str(source), "--dry-run", "--json").out)
    run_here("quantize", str(source))
    written = sum(file.stat().st_size for file in (home / "models" / "small-int4").glob("*.safetensors"))
    assert record["size_after"] == written


def test_json_summary(source: Path) -> None:
    summary = json.loads(run_here("quantize", str(source), "--json", "--method", "rtn").out)
    assert summary["size_after"] < summary["size_before"]
    assert [error["bits"] for error in summary["errors"]] == [4, 8]


def test_bits_for_and_keep(source: Path) -> None:
    plan = run_here("quantize", str(source), "--dry-run", "--bits-for", "up_proj=8", "--keep", "down_proj").out
    lines = [line for line in plan.splitlines() if line.startswith("mlp.")]
    assert all("8 bit" in line for line in lines if line.startswith("mlp.up_proj"))
    assert all("as it is" in line for line in lines if line.startswith("mlp.down_proj"))


@pytest.mark.parametrize("value", ["up_proj", "up_proj=5", "=8", "up_proj=eight"])
def test_bits_for_wants_pattern_and_bits(source: Path, value: str) -> None:
    assert_fails(run_here("quantize", str(source), "--bits-for", value), 2, "PATTERN=BITS")


def test_what_cannot_be_asked(source: Path, tmp_path: Path) -> None:
    assert_fails(run_here("quantize", str(source), "--keep", "layers.77.*"), 2, "layers.77.*")
    assert_fails(run_here("quantize", "nobody"), 2, "nobody")
    run_here("quantize", str(source))
    assert_fails(run_here("quantize", str(source)), 2, "exists already", "--force")
    assert run_here("quantize", str(source), "--force").code == 0
    assert_fails(run_here("quantize", "small-int4"), 2, "quantized already")
    assert_fails(run_here("chat", "-m", "small-int4", "--quantize", "int4", "Hi"), 2, "quantized already")
    assert_fails(run_here("chat", "-m", str(source), "--quantize", "int5", "Hi"), 2, "int5", "int4 or int8")
    assert run_here("quantize", str(source), "--bits", "5").code == 2
    (tmp_path / "file").write_bytes(b"")
    assert_fails(run_here("quantize", str(source), str(tmp_path / "file" / "x")), 1, "could not be written")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_destination(source: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    assert_fails(run_here("quantize", str(source), f"{tmp_path}/locked/x"), 1, "Permission denied")


def test_nan_is_named(source: Path, home: Path) -> None:
    tensors = load_file(source / "model.safetensors")
    tensors["language_model.model.layers.2.self_attn.v_proj.weight"][3, 3] = float("nan")
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    assert_fails(run_here("quantize", str(source), "--bits", "8"), 1, "layers.2.self_attn.v_proj.weight", "NaN")
    assert "small-int8" not in run_here("list").out


def test_quantizing_while_loading(source: Path) -> None:
    run_here("quantize", str(source), "--method", "rtn")
    ask = ("--max-tokens", "6", "--device", "cpu", "--json", "Hello")
    loaded, stored = (
        json.loads(run_here("chat", "-m", *model, *ask).out)["answer"]
        for model in ((str(source), "--quantize", "int4"), ("small-int4",))
    )
    assert loaded == stored


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_leaves_no_model_and_the_next_run_goes_on(tmp_path: Path, home: Path) -> None:
    text = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8, "cross_attention_layers": []}
    source = make_checkpoint(tmp_path / "big", text_only_config(config_dict(text)), dtype=torch.float32)
    journal = home / "models" / "big-int4.partial" / ".quantize.jsonl"
    with subprocess.Popen(
        [SCRIPT, "quantize", str(source)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while process.poll() is None and not (journal.exists() and journal.read_text().count("\n") > 3):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, ""), err
    assert "Run the same command to resume" in err
    assert "Traceback" not in err
    assert "big-int4" not in run_here("list").out
    result = run_here("quantize", str(source))
    assert result.code == 0, result.err
    assert "Resuming an earlier run" in result.err
    assert "big-int4" in run_here("list").out
