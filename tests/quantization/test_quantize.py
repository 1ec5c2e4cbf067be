"""Quantizing a checkpoint: what is written, what stays, that any interruption leaves nothing half and loses little."""

import itertools
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file

from mllama_cli.checkpoint.names import canonical
from mllama_cli.core.conversation import Conversation
from mllama_cli.core.errors import CheckpointError, QuantizationError, UsageError
from mllama_cli.core.events import Event, Notice, QuantizeProgress, QuantizeSummary
from mllama_cli.engine.load import load
from mllama_cli.kernels.reference import PackedWeight, dequantize
from mllama_cli.quantization import quantize as quantize_module
from mllama_cli.quantization.choose import Wish
from mllama_cli.quantization.linear import QuantizedLinear
from mllama_cli.quantization.plan import Plan, make_plan
from mllama_cli.quantization.quantize import quantize
from mllama_cli.quantization.rounding import quantize_matrix
from mllama_cli.quantization.schemes import Scheme
from tests.benchmarks.random_checkpoint import write
from tests.checkpoints import config_dict, make_checkpoint, text_only_config

ROOT = Path(__file__).parents[2]
FOUR = Wish(Scheme(4, 128))
RELEASED = config_dict(
    {"num_hidden_layers": 40, "cross_attention_layers": [3, 8, 13, 18, 23, 28, 33, 38], "hidden_size": 32,
     "intermediate_size": 64}
)  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model") / "source", shard_bytes=400_000)


def run(plan: Plan, folder: Path, **how: Any) -> list[Event]:
    return list(quantize(plan, folder, **how))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {canonical(n): t for file in folder.glob("*.safetensors") for n, t in load_file(file).items()}


def bits_of(plan: Plan) -> dict[str, int]:
    return {name: scheme.bits for name, scheme in plan.choice.schemes.items()}


def test_every_matrix_is_what_the_rounding_gives_and_the_rest_is_untouched(source: Path, tmp_path: Path) -> None:
    plan = make_plan(source, FOUR)
    events = run(plan, tmp_path / "made")
    before, after = weights(source), weights(tmp_path / "made")
    for name, scheme in plan.choice.schemes.items():
        expected = quantize_matrix(before.pop(f"{name}.weight"), scheme).weight
        assert torch.equal(after.pop(f"{name}.weight_packed"), expected.packed)
        assert torch.equal(after.pop(f"{name}.weight_scale"), expected.scale)
        assert tuple(after.pop(f"{name}.weight_shape").tolist()) == expected.shape
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    progress = [event for event in events if isinstance(event, QuantizeProgress)]
    assert progress[-1].done == progress[-1].total == plan.size_before
    summary = events[-1]
    assert isinstance(summary, QuantizeSummary)
    assert summary.size_after == sum(file.stat().st_size for file in (tmp_path / "made").glob("*.safetensors"))
    assert {error.bits for error in summary.errors} == {4, 8}
    four = summary.errors[0]
    assert 0 < four.mean <= four.worst < 0.02
    assert four.worst_name in plan.choice.schemes


def test_files_beside_the_weights_come_along(source: Path, tmp_path: Path) -> None:
    (source / "original.pth").write_bytes(b"not wanted")
    run(make_plan(source, FOUR), tmp_path / "made")
    names = {file.name for file in (tmp_path / "made").iterdir()}
    assert names == {
        "config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json",
        "tokenizer_config.json", "chat_template.jinja", "model.safetensors",
    }  # fmt: skip
    assert not list(tmp_path.glob("*.partial"))
    kept = json.loads((tmp_path / "made" / "config.json").read_text())
    del kept["quantization_config"]
    assert kept == json.loads((source / "config.json").read_text())


def test_shards_hold_what_one_file_holds(source: Path, tmp_path: Path) -> None:
    run(make_plan(source, FOUR), tmp_path / "one")
    plan = make_plan(source, FOUR, shard_bytes=100_000)
    run(plan, tmp_path / "many")
    files = list((tmp_path / "many").glob("model-*-of-*.safetensors"))
    assert len(files) == len(plan.shards) > 4
    one, many = weights(tmp_path / "one"), weights(tmp_path / "many")
    assert one.keys() == many.keys()
    assert all(torch.equal(one[name], many[name]) for name in one)
    assert load(tmp_path / "many", device="cpu", vision=True).sees


@pytest.mark.parametrize("layout", ["older", "newer"])
def test_either_key_layout_is_kept_and_loads(tmp_path: Path, layout: str) -> None:
    folder = make_checkpoint(tmp_path / "source")
    if layout == "newer":
        tensors = load_file(folder / "model.safetensors")
        save_file({canonical(name): t for name, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    run(make_plan(folder, FOUR), tmp_path / "made")
    heads = {
        name.split(".layers.")[0] for name in load_file(tmp_path / "made" / "model.safetensors") if ".mlp." in name
    }
    assert heads == (
        {"language_model.model", "vision_model.transformer", "vision_model.global_transformer"}
        if layout == "older"
        else {"model.language_model", "model.vision_model.transformer", "model.vision_model.global_transformer"}
    )
    engine = load(tmp_path / "made", device="cpu", vision=True)
    assert isinstance(engine.network.lm_head, QuantizedLinear)


def test_text_only_checkpoints(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "source", text_only_config())
    run(make_plan(folder, FOUR), tmp_path / "made")
    reply = load(tmp_path / "made", device="cpu").answer_batch([Conversation.ask("Hello")])
    assert reply[0].ids


def test_what_stays_high_in_a_model_of_40_layers(tmp_path: Path) -> None:
    plan = make_plan(make_checkpoint(tmp_path / "source", RELEASED), Wish(Scheme(4, 32)))
    high = {name for name, bits in bits_of(plan).items() if bits == 8}
    layers = "model.language_model.layers"
    cross = {f"{layers}.{n}.cross_attn.o_proj" for n in (3, 8, 13, 18, 23, 28, 33, 38)}
    first = {f"{layers}.1.self_attn.{p}_proj" for p in "qkvo"} | {
        f"{layers}.1.mlp.{p}_proj" for p in ("gate", "up", "down")
    }
    assert high == {"lm_head", *cross, *first, f"{layers}.13.mlp.down_proj", f"{layers}.18.mlp.down_proj"}
    assert all(plan.choice.schemes[name].group_size == 0 for name in high)
    assert all("vision" in name or "projector" in name for name in plan.choice.kept)


def test_in_other_models_the_worst_matrices_stay_high(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "source")
    tensors = load_file(folder / "model.safetensors")
    spiky = "language_model.model.layers.2.mlp.down_proj.weight"
    for name, tensor in tensors.items():
        if (".layers.4." in name and name.startswith("language_model") and tensor.dim() == 2) or name == spiky:
            tensor[:, ::32] *= 30
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    high = {name for name, bits in bits_of(make_plan(folder, Wish(Scheme(4, 32)))).items() if bits == 8}
    layers = "model.language_model.layers"
    whole = {f"{layers}.4.self_attn.{p}_proj" for p in "qkvo"} | {
        f"{layers}.4.mlp.{p}_proj" for p in ("gate", "up", "down")
    }
    cross = {f"{layers}.{n}.cross_attn.o_proj" for n in (1, 3)}
    assert high == {"lm_head", *cross, *whole, f"{layers}.2.mlp.down_proj"}


def test_with_8_bits_everything_has_the_same(source: Path) -> None:
    plan = make_plan(source, Wish(Scheme(8, 32)))
    assert set(plan.choice.schemes.values()) == {Scheme(8, 32)}


def test_keep_and_bits_for(source: Path) -> None:
    wish = Wish(
        Scheme(4, 32),
        keep=("layers.0.*", "lm_head"),
        bits_for=(("down_proj", 8), ("*.cross_attn.o_proj", 4), ("vision_model.transformer.*.fc1", 8)),
    )
    plan = make_plan(source, wish)
    bits = bits_of(plan)
    assert "lm_head" in plan.choice.kept
    assert not any(".layers.0." in name and "language" in name for name in bits)
    assert bits["model.language_model.layers.3.mlp.down_proj"] == 8
    assert plan.choice.schemes["model.language_model.layers.3.cross_attn.o_proj"] == Scheme(4, 32)
    towers = [name for name in bits if "vision" in name]
    assert len(towers) == 4
    assert all(name.endswith("fc1") for name in towers)


@pytest.mark.parametrize("pattern", ["nothing", "layers.99.*", "transformer.layers.0.*"])
def test_a_pattern_that_fits_nothing(source: Path, pattern: str) -> None:
    with pytest.raises(UsageError, match="No linear layer fits"):
        make_plan(source, Wish(Scheme(4, 128), keep=(pattern,)))


def test_a_slip_in_a_pattern_is_set_right(source: Path) -> None:
    with pytest.raises(UsageError) as error:
        make_plan(source, Wish(Scheme(4, 128), keep=("down_prjo",)))
    assert "Did you mean down_proj" in error.value.hint


def test_groups_that_do_not_divide_are_told(source: Path, tmp_path: Path) -> None:
    notes = [event.text for event in run(make_plan(source, FOUR), tmp_path / "made") if isinstance(event, Notice)]
    assert any("do not divide 96 inputs" in note and "groups of 32" in note for note in notes)


def test_a_quantized_checkpoint_is_refused(source: Path, tmp_path: Path) -> None:
    run(make_plan(source, FOUR), tmp_path / "made")
    with pytest.raises(UsageError, match="quantized already"):
        make_plan(tmp_path / "made", FOUR)
    with pytest.raises(UsageError, match="quantized already"):
        load(tmp_path / "made", quantize="int4")


@pytest.mark.parametrize("name", ["mlp.up_proj.weight", "input_layernorm.weight"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_tensor_that_is_no_number_is_named(tmp_path: Path, name: str, bad: float) -> None:
    folder = make_checkpoint(tmp_path / "source", RELEASED)
    tensors = load_file(folder / "model.safetensors")
    name = f"language_model.model.layers.7.{name}"
    tensors[name].view(-1)[-1] = bad
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError) as error:
        run(make_plan(folder, FOUR), tmp_path / "made")
    assert name in error.value.message
    assert not (tmp_path / "made").exists()


def test_an_existing_folder_is_not_touched_without_force(source: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    run(make_plan(source, FOUR), made)
    before = contents(made)
    with pytest.raises(UsageError, match="exists already"):
        run(make_plan(source, Wish(Scheme(8, 32))), made)
    assert contents(made) == before
    run(make_plan(source, Wish(Scheme(8, 32))), made, force=True)
    assert contents(made) != before
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_force_replaces_models_only(source: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(UsageError, match="no model"):
        run(make_plan(source, FOUR), tmp_path / "photos", force=True)
    for inside in (source, source / "made", source.parent):
        with pytest.raises(UsageError, match="lie in each other"):
            run(make_plan(source, FOUR), inside, force=True)
    assert (tmp_path / "photos" / "cat.jpg").exists()


def test_two_runs_at_once_do_not_mix(source: Path, tmp_path: Path) -> None:
    (tmp_path / "made.partial").mkdir()
    with FileLock(tmp_path / "made.partial" / ".lock"), pytest.raises(UsageError, match="Another process"):
        run(make_plan(source, FOUR), tmp_path / "made")


def test_a_place_that_cannot_be_written(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(QuantizationError, match="could not be written"):
        run(make_plan(source, FOUR), tmp_path / "file" / "made")


def test_a_disk_that_is_too_small_is_said_first(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize_module, "free_space", lambda folder: 1000)
    with pytest.raises(QuantizationError, match="GB free, but this needs"):
        run(make_plan(source, FOUR), tmp_path / "made")
    assert not list(tmp_path.iterdir())


def test_stopped_after_any_event_it_goes_on_to_the_same_bytes(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize_module, "SYNC_AFTER", 1)
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
        if stop == 21:  # as a process leaves it that is killed while it writes a line
            journal = tmp_path / "made.partial" / ".quantize.jsonl"
            journal.write_text(journal.read_text() + '{"name": "model.lang')
    assert contents(made) == contents(tmp_path / "whole")
    # One slice is under way when a run stops; everything before it is kept.
    assert len(rounded) <= len(plan.choice.schemes) + stop // 7


def test_a_lost_file_is_made_again(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize_module, "SYNC_AFTER", 1)
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
    monkeypatch.setattr(quantize_module, "SYNC_AFTER", 1)
    events = quantize(make_plan(source, FOUR, shard_bytes=100_000), tmp_path / "made")
    for _ in range(60):
        next(events)
    events.close()
    plan = make_plan(source, Wish(Scheme(4, 32), "rtn"))
    run(plan, tmp_path / "made")
    run(plan, tmp_path / "whole")
    assert contents(tmp_path / "made") == contents(tmp_path / "whole")


def bigger(folder: Path) -> Path:
    """30 million weights: some seconds of work."""
    text = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8, "cross_attention_layers": []}
    return make_checkpoint(folder, text_only_config(config_dict(text)))


def start(source: Path, folder: Path, *, limit: int | None = None) -> "subprocess.Popen[str]":
    """The library in a process of its own that writes the folder's name at the end."""
    lines = [
        "import sys, resource",
        "from pathlib import Path",
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))" if limit else "",
        "from mllama_cli.quantization.quantize import quantize",
        "from mllama_cli.quantization.plan import make_plan",
        "from mllama_cli.quantization.choose import Wish",
        "from mllama_cli.quantization.schemes import Scheme",
        "from mllama_cli.core.errors import MllamaError",
        "try:",
        "    for event in quantize(make_plan(Path(sys.argv[1]), Wish(Scheme(4, 128))), Path(sys.argv[2])): pass",
        "except MllamaError as error: sys.exit(f'{error.message} | {error.hint}')",
        "high = [line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')]",
        "print(high[0])",
    ]
    return subprocess.Popen(
        [sys.executable, "-c", "\n".join(lines), str(source), str(folder)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def journal_lines(folder: Path) -> int:
    try:
        return (folder.with_name(folder.name + ".partial") / ".quantize.jsonl").read_text().count("\n")
    except FileNotFoundError:
        return 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_killed_at_random_moments_it_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    source, made = bigger(tmp_path / "source"), tmp_path / "made"
    chance = random.Random(5)
    kills = 0
    target = 2
    while True:
        target += chance.randrange(1, 12)
        with start(source, made) as process:
            while process.poll() is None and journal_lines(made) < target:
                try:
                    process.wait(chance.random() * 0.02)
                except subprocess.TimeoutExpired:
                    continue
            if process.poll() is None:
                process.kill()
                kills += 1
            else:
                assert process.returncode == 0, process.stderr and process.stderr.read()
                break
        assert not made.exists()
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
    assert "goes on where it stopped" in err
    assert "Traceback" not in err
    assert not made.exists()
    with start(source, made) as process:
        _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert load(made, device="cpu").dtype == torch.float32


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """1 GB of bfloat16 weights: a slice, a few blocks and torch itself are in memory."""
    text = {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 16, "num_key_value_heads": 4,
            "num_hidden_layers": 8, "cross_attention_layers": []}  # fmt: skip
    empty = tmp_path / "files"
    empty.mkdir()
    write(tmp_path / "source", text_only_config(config_dict(text)), empty)
    size = sum(file.stat().st_size for file in (tmp_path / "source").glob("*.safetensors"))
    assert size > 900e6
    with start(tmp_path / "source", tmp_path / "made") as process:
        out, err = process.communicate(timeout=280)
    assert process.returncode == 0, err
    assert int(out) * 1024 < 800e6


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    run(make_plan(make_checkpoint(folder / "source"), FOUR), folder / "made")
    return folder / "made"


def damaged(packed: Path, folder: Path, ending: str, change: Any) -> tuple[Path, str]:
    """A copy in which one tensor of an MLP matrix is changed."""
    folder.mkdir()
    for file in packed.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    name = f"language_model.model.layers.0.mlp.up_proj.{ending}"
    changed = change(tensors.pop(name))
    if changed is not None:
        tensors[name] = changed
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder, canonical(name)


def _set(value: float) -> Any:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor[-1, -1] = value
        return tensor

    return change


DAMAGES: dict[str, tuple[str, Any]] = {
    "too few words": ("weight_packed", lambda t: t[:, :-1].contiguous()),
    "too few rows": ("weight_packed", lambda t: t[:-1].contiguous()),
    "words of another type": ("weight_packed", lambda t: t.float()),
    "no words": ("weight_packed", lambda t: None),
    "too few scales": ("weight_scale", lambda t: t[:, :1].repeat(1, 3)),
    "no scales": ("weight_scale", lambda t: None),
    "a scale NaN": ("weight_scale", _set(float("nan"))),
    "a scale infinite": ("weight_scale", _set(float("inf"))),
    "a scale zero": ("weight_scale", _set(0.0)),
    "a scale negative": ("weight_scale", _set(-0.01)),
    "another shape": ("weight_shape", lambda t: t.flip(0).contiguous()),
    "no shape": ("weight_shape", lambda t: None),
    "a shape of three": ("weight_shape", lambda t: torch.tensor([96, 64, 1])),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_packed_tensor_is_named_at_load(packed: Path, tmp_path: Path, kind: str) -> None:
    folder, name = damaged(packed, tmp_path / "damaged", *DAMAGES[kind])
    with pytest.raises(CheckpointError) as error:
        load(folder, device="cpu")
    assert name in error.value.message
    assert error.value.hint


def test_packed_weights_where_config_json_wants_plain_ones_and_the_other_way_round(
    packed: Path, tmp_path: Path
) -> None:
    folder, _ = damaged(packed, tmp_path / "a", "weight_scale", lambda t: t)
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="lacks weights"):
        load(folder)
    plain = make_checkpoint(tmp_path / "b")
    (plain / "config.json").write_text((packed / "config.json").read_text())
    with pytest.raises(CheckpointError, match="lacks weights"):
        load(plain)


@pytest.mark.parametrize("on_load", ["int4", "int8"])
def test_quantizing_while_loading_is_rounding_to_nearest_with_the_same_defaults(
    source: Path, tmp_path: Path, on_load: str
) -> None:
    run(make_plan(source, Wish(Scheme(int(on_load[-1]), 128), "rtn")), tmp_path / "made")
    stored = load(tmp_path / "made", device="cpu", vision=True).network.state_dict()
    made = load(source, device="cpu", vision=True, quantize=on_load).network.state_dict()
    assert stored.keys() == made.keys()
    assert all(torch.equal(stored[name], made[name]) for name in stored)
    matrix = PackedWeight(made["lm_head.weight_packed"], made["lm_head.weight_scale"], (264, 64), 8)
    torch.testing.assert_close(dequantize(matrix), weights(source)["lm_head.weight"], rtol=0, atol=0.01)


def test_while_loading_errors_are_named_too(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="int3"):
        load(source, quantize="int3")
    folder = make_checkpoint(tmp_path / "bad", RELEASED)
    tensors = load_file(folder / "model.safetensors")
    tensors["language_model.model.layers.7.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"layers\.7\.mlp\.up_proj"):
        load(folder, device="cpu", quantize="int4")


def test_rows_that_people_add_to_the_vocabulary_are_cut_off(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "source")
    tensors = load_file(folder / "model.safetensors")
    head = tensors["language_model.lm_head.weight"]
    tensors["language_model.lm_head.weight"] = torch.cat((head, head[:8]))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    run(make_plan(folder, FOUR), tmp_path / "made")
    engine = load(tmp_path / "made", device="cpu")
    assert engine.network.lm_head.weight_packed.shape[0] == len(head)
    assert engine.network(torch.tensor([[1, 2, 3]])).shape[-1] == len(head)


def test_a_tied_output_layer_stays_the_embedding(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "source", config_dict({"tie_word_embeddings": True}))
    tensors = load_file(folder / "model.safetensors")
    del tensors["language_model.lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    run(make_plan(folder, FOUR), tmp_path / "made")
    engine = load(tmp_path / "made", device="cpu")
    table = engine.network.language_model.embed_tokens.weight
    assert torch.equal(engine.network.lm_head.weight, table[: len(engine.network.lm_head.weight)])
