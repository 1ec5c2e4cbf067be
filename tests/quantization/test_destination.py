"""The destination of a quantized model: interruptions leave no partial model and lose little work."""

import itertools
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from mllama_cli.core.errors import QuantizationError, UsageError
from mllama_cli.core.events import Event, QuantizeSummary
from mllama_cli.engine.engine import load
from mllama_cli.quantization import quantize as quantize_module
from mllama_cli.quantization.journal import JOURNAL_NAME, is_journal
from mllama_cli.quantization.plan import make_plan
from mllama_cli.quantization.policy import QuantizeOptions
from mllama_cli.quantization.quantize import quantize
from mllama_cli.quantization.rounding import quantize_matrix
from mllama_cli.quantization.schemes import Scheme
from mllama_cli.system.json_file import MAX_JSON_BYTES
from tests.benchmarks.random_checkpoint import write
from tests.checkpoints import config_dict, make_checkpoint, text_only_config
from tests.quantization.running import FOUR, contents, kill_until_made, run

ROOT = Path(__file__).parents[2]


def test_an_existing_folder_is_not_touched_without_force(source: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    run(make_plan(source, FOUR), made)
    before = contents(made)
    with pytest.raises(UsageError, match="exists already"):
        run(make_plan(source, QuantizeOptions(Scheme(8, 32))), made)
    assert contents(made) == before
    run(make_plan(source, QuantizeOptions(Scheme(8, 32))), made, force=True)
    assert contents(made) != before
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_force_replaces_models_only(source: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(UsageError, match="is not a model"):
        run(make_plan(source, FOUR), tmp_path / "photos", force=True)
    for inside in (source, source / "made", source.parent):
        with pytest.raises(UsageError, match="must not contain one another"):
            run(make_plan(source, FOUR), inside, force=True)
    assert (tmp_path / "photos" / "cat.jpg").exists()


def test_two_runs_at_once_do_not_mix(source: Path, tmp_path: Path) -> None:
    (tmp_path / "made.partial").mkdir()
    with FileLock(tmp_path / "made.partial" / ".lock"), pytest.raises(UsageError, match="Another process"):
        run(make_plan(source, FOUR), tmp_path / "made")


def test_folders_beside_stay(source: Path, tmp_path: Path) -> None:
    for name in ("made.old", "made.new", ".made", "made.partial.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("mine")
    before = contents(tmp_path)
    run(make_plan(source, FOUR), tmp_path / "made")
    run(make_plan(source, FOUR), tmp_path / "made", force=True)
    after = contents(tmp_path)
    assert before.items() <= after.items()
    assert {name.split("/")[0] for name in after} == {name.split("/")[0] for name in before} | {"made"}
    assert not [name for name in after if name.startswith("made/.")]


PLANTS = [
    "file",
    "photo",
    "config",
    "other journal",
    "link",
    "dangling",
    "link inside",
    "hard link",
    "subfolder",
    "lock",
]


def test_a_journal_is_known_by_a_first_line_of_bounded_size(source: Path, tmp_path: Path) -> None:
    file = tmp_path / JOURNAL_NAME
    first = json.dumps(make_plan(source, FOUR).fingerprint()).encode()
    file.write_bytes(first + b"\n")
    assert is_journal(file)
    file.write_bytes(first + b" " * MAX_JSON_BYTES + b"\n")
    assert not is_journal(file)
    file.unlink()
    os.mkfifo(file)
    assert not is_journal(file)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("kind", PLANTS)
def test_a_partial_folder_of_others_is_not_touched(kind: str, force: bool, source: Path, tmp_path: Path) -> None:
    plan = make_plan(source, FOUR)
    partial, victim = tmp_path / "made.partial", tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("precious")
    journal = json.dumps(plan.fingerprint()) + "\n"
    if kind == "file":
        partial.write_text("mine")
    elif kind in ("link", "dangling"):
        partial.symlink_to(victim if kind == "link" else tmp_path / "nothing")
    else:
        partial.mkdir()
        if kind in ("link inside", "hard link", "subfolder"):
            (partial / ".quantize.jsonl").write_text(journal)
        match kind:
            case "photo":
                (partial / "cat.jpg").write_text("mine")
            case "config":
                (partial / "config.json").write_text("mine")
            case "other journal":
                (partial / ".quantize.jsonl").write_text('{"source": "mine"}\n')
                (partial / "config.json").write_text("mine")
            case "link inside":
                (partial / "config.json").symlink_to(victim / "file")
            case "hard link":
                os.link(victim / "file", partial / "model.safetensors")
            case "subfolder":
                (partial / "sub").mkdir()
                (partial / "sub" / "mine").write_text("mine")
            case "lock":
                (partial / ".lock").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises((UsageError, QuantizationError)) as caught:
        run(plan, tmp_path / "made", force=force)
    assert caught.value.hint
    assert contents(tmp_path) == before
    assert not (tmp_path / "made").exists()
    assert not (tmp_path / "nothing").exists()


def test_killed_while_an_old_model_is_replaced(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tmp_path / "made"
    run(make_plan(source, FOUR), made)
    rename = Path.rename

    def killed(path: Path, target: Path) -> Path:
        if path.name == "made.partial":
            raise KeyboardInterrupt
        return rename(path, target)

    eight = make_plan(source, QuantizeOptions(Scheme(8, 32)))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            run(eight, made, force=True)
    assert not made.exists()
    run(eight, made)
    run(eight, tmp_path / "whole")
    assert contents(made) == contents(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "whole"]


@pytest.mark.parametrize("name", ["/", ".", "..", " "])
def test_names_that_are_none(name: str, source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="cannot be the name of a model"):
        run(make_plan(source, FOUR), Path(name))


def test_long_names(source: Path, tmp_path: Path) -> None:
    for length in (247, 248, 255):
        run(make_plan(source, FOUR), tmp_path / ("x" * length))
        run(make_plan(source, FOUR), tmp_path / ("x" * length), force=True)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_folder_that_cannot_be_written(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(QuantizationError, match="could not be written"):
        run(make_plan(source, FOUR), tmp_path / "file" / "made")


def test_a_disk_that_is_too_small_is_reported_first(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize_module, "free_space", lambda folder: 1000)
    with pytest.raises(QuantizationError, match=r"has 1\.0 kB free, but this needs"):
        run(make_plan(source, FOUR), tmp_path / "made")
    assert not list(tmp_path.iterdir())


def test_stopped_after_any_event_it_resumes_to_the_same_bytes(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize_module, "SYNC_BYTES", 1)
    plan = make_plan(source, FOUR, shard_bytes=200_000)
    run(plan, tmp_path / "whole")
    rounded = []
    monkeypatch.setattr(quantize_module, "quantize_matrix", lambda *given: rounded.append(1) or quantize_matrix(*given))
    made = tmp_path / "made"
    last: Event | None = None
    for stop in itertools.count(7, 7):
        events = quantize(plan, made)
        for last in itertools.islice(events, stop):
            assert made.exists() == isinstance(last, QuantizeSummary)
        events.close()
        if isinstance(last, QuantizeSummary):
            break
        if stop == 21:  # as left by a process that was killed while it wrote a line
            journal = tmp_path / "made.partial" / ".quantize.jsonl"
            journal.write_text(journal.read_text() + '{"name": "model.lang')
    assert contents(made) == contents(tmp_path / "whole")
    # One slice is in progress when a run stops; everything before it is kept.
    assert len(rounded) <= len(plan.layers.schemes) + stop // 7


def test_a_lost_file_is_made_again(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize_module, "SYNC_BYTES", 1)
    plan = make_plan(source, FOUR, shard_bytes=200_000)
    run(plan, tmp_path / "whole")
    events = quantize(plan, tmp_path / "made")
    for _ in range(80):
        next(events)
    events.close()
    partial = tmp_path / "made.partial"
    assert (partial / plan.shards[1].file).exists()
    (partial / plan.shards[0].file).unlink()
    run(plan, tmp_path / "made")
    assert contents(tmp_path / "made") == contents(tmp_path / "whole")


def test_other_settings_begin_anew(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize_module, "SYNC_BYTES", 1)
    events = quantize(make_plan(source, FOUR, shard_bytes=100_000), tmp_path / "made")
    for _ in range(60):
        next(events)
    events.close()
    plan = make_plan(source, QuantizeOptions(Scheme(4, 32), "rtn"))
    run(plan, tmp_path / "made")
    run(plan, tmp_path / "whole")
    assert contents(tmp_path / "made") == contents(tmp_path / "whole")


def bigger(folder: Path) -> Path:
    """30 million weights: some seconds of work."""
    text = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8, "cross_attention_layers": []}
    return make_checkpoint(folder, text_only_config(config_dict(text)))


def start(source: Path, folder: Path, *, limit: int | None = None) -> "subprocess.Popen[str]":
    """The library in a process of its own that says at the end by how many KiB its memory grew."""
    lines = [
        "import sys, resource",
        "from pathlib import Path",
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))" if limit else "",
        "from mllama_cli.quantization.quantize import quantize",
        "from mllama_cli.quantization.plan import make_plan",
        "from mllama_cli.quantization.policy import QuantizeOptions",
        "from mllama_cli.quantization.schemes import Scheme",
        "from mllama_cli.core.errors import MllamaError",
        "def high(): return next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM'))",
        "before = int(high())",
        "try:",
        "    plan = make_plan(Path(sys.argv[1]), QuantizeOptions(Scheme(4, 128)))",
        "    for event in quantize(plan, Path(sys.argv[2])): pass",
        "except MllamaError as error: sys.exit(f'{error.message} | {error.hint}')",
        "print(int(high()) - before)",
    ]
    return subprocess.Popen(
        [sys.executable, "-c", "\n".join(lines), str(source), str(folder)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_killed_at_random_moments_it_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    source, made, errors = bigger(tmp_path / "source"), tmp_path / "made", tmp_path / "errors.txt"
    kills = kill_until_made("quantize_four", source, made, errors, random.Random(5), first=2, lines=range(1, 12))
    assert kills >= 3
    run(make_plan(source, FOUR), tmp_path / "whole")
    assert contents(made) == contents(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_full_disk_leaves_no_model_and_the_next_run_goes_on(tmp_path: Path) -> None:
    source, made = bigger(tmp_path / "source"), tmp_path / "made"
    with start(source, made, limit=8_000_000) as process:
        _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "is full" in err
    assert "Run the same command to resume" in err
    assert "Traceback" not in err
    assert not made.exists()
    with start(source, made) as process:
        _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert load(made, device="cpu").dtype == torch.float32


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """360 MB of bfloat16 weights: a slice and a few blocks of them are in memory."""
    text = {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 16, "num_key_value_heads": 4,
            "num_hidden_layers": 3, "cross_attention_layers": []}  # fmt: skip
    empty = tmp_path / "files"
    empty.mkdir()
    write(tmp_path / "source", text_only_config(config_dict(text)), empty)
    size = sum(file.stat().st_size for file in (tmp_path / "source").glob("*.safetensors"))
    assert size > 360e6
    with start(tmp_path / "source", tmp_path / "made") as process:
        out, err = process.communicate(timeout=280)
    assert process.returncode == 0, err
    assert int(out) * 1024 < 300e6
