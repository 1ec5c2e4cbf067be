"""Training optimizes the network that the engine runs, and a run can resume another."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from mllama_cli.core.config import ImageProcessorConfig, MllamaConfig
from mllama_cli.core.conversation import Conversation
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.engine import load
from mllama_cli.sketch.training import model_config, train
from mllama_cli.sketch.training.dataset import Shard, render_shard
from mllama_cli.sketch.training.packing import Sizes, assemble, pack_rows
from mllama_cli.sketch.training.trainer import Trainer, new_network, predict

TINY = {"tile": 56, "vision_size": 32, "vision_layers": 3, "global_layers": 1, "text_size": 48, "text_inner": 64,
        "layers": 4, "cross_layers": [1, 3]}  # fmt: skip
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def shard(vocabulary: Path) -> Shard:
    return render_shard(100, 80, vocabulary, tile_size=56, group_size=2)


@pytest.fixture(scope="module")
def few(vocabulary: Path) -> Shard:
    """A shard large enough for one step."""
    return render_shard(100, 20, vocabulary, tile_size=56, group_size=2)


def test_training_computes_what_the_network_does(shard: Shard) -> None:
    network = new_network(MllamaConfig.from_dict(model_config.config(**TINY)), CPU)
    rows = pack_rows(shard, 192)
    batch = assemble([(shard, torch.from_numpy(shard.tiles), rows)], CPU)
    with torch.no_grad():
        prediction = predict(network, batch)
    counts = np.diff(shard.tile_start)
    assert len(set(counts)) > 1, "the shard needs images with different numbers of tiles"
    assert set(shard.image_range[:, 1]) == {0, 1, 2}
    mean, std = (torch.tensor(v) for v in (ImageProcessorConfig().image_mean, ImageProcessorConfig().image_std))
    for sample in range(len(shard)):
        ids = torch.from_numpy(shard.ids[shard.id_start[sample] : shard.id_start[sample + 1]].astype(np.int64))
        said = torch.from_numpy(shard.answer[shard.id_start[sample] : shard.id_start[sample + 1]])[1:]
        first, count = shard.image_range[sample]
        pixels = [
            ((torch.from_numpy(shard.tiles[shard.tile_start[i] : shard.tile_start[i + 1]]) / 255 - mean) / std).permute(
                0, 3, 1, 2
            )
            for i in range(first, first + count)
        ]
        ratio_ids = [int(shard.aspect_ratio_id[i]) for i in range(first, first + count)]
        logits = network(ids[None], pixels, ratio_ids)[0, :-1]
        expected = F.cross_entropy(logits, ids[1:].clamp_max(logits.shape[-1] - 1), reduction="none")[said]
        here = (batch.sample[:, 1:] == sample) & prediction.answer
        torch.testing.assert_close(prediction.loss[here], expected, atol=2e-5, rtol=1e-4)


def test_rows_hold_whole_samples_about_the_same_pictures(shard: Shard) -> None:
    for rng in (None, random.Random(1)):
        rows = pack_rows(shard, 192, rng)
        for row in range(len(rows.ids)):
            for sample in set(rows.sample[row]) - {-1}:
                here = rows.sample[row] == sample
                assert here.sum() == shard.id_start[sample + 1] - shard.id_start[sample]
                assert rows.position[row][here].tolist() == list(range(here.sum()))
                first, count = shard.image_range[sample]
                assert [p for p in rows.pictures[row] if p >= 0] == list(range(first, first + count))
    assert set(np.unique(pack_rows(shard, 192).sample)) - {-1} == set(range(len(shard)))


def test_unused_tiles_stay_equal_in_training(few: Shard) -> None:
    network = new_network(MllamaConfig.from_dict(model_config.config(**TINY)), CPU)
    trainer = Trainer(network, torch.float32)
    batch = assemble([(few, torch.from_numpy(few.tiles), pack_rows(few, 192))], CPU)
    before = float(predict(network, batch).mean().detach())
    for _ in range(8):
        trainer.step(batch, 3e-3)
    assert float(predict(network, batch).mean().detach()) < before - 0.5
    assert network.model.vision_model.unused_tiles_are_equal()
    network.load_state_dict(trainer.state()["weights"])
    assert network.model.vision_model.unused_tiles_are_equal(), "what is written is pinned too"


def test_a_batch_of_fixed_sizes_means_the_same(few: Shard) -> None:
    """Padding with rows and images that nothing attends to changes neither loss nor gradients."""
    network = new_network(MllamaConfig.from_dict(model_config.config(**TINY)), CPU)
    parts = [(few, torch.from_numpy(few.tiles), pack_rows(few, 192))]
    exact = assemble(parts, CPU)
    fixed = assemble(parts, CPU, Sizes(len(exact.ids) + 3, tuple(len(tiles) + 2 for tiles in exact.tiles)))
    assert [len(tiles) for tiles in fixed.tiles] == [len(tiles) + 2 for tiles in exact.tiles]
    results = []
    for batch in (exact, fixed):
        loss = predict(network, batch).mean()
        results.append((loss, torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)))
    torch.testing.assert_close(results[0], results[1], atol=1e-6, rtol=1e-4)


def test_a_batch_that_is_too_small_holds_whole_rows_with_their_pictures(shard: Shard) -> None:
    rows = pack_rows(shard, 192)
    parts = [(shard, torch.from_numpy(shard.tiles), rows)] * 2
    every = assemble(parts, CPU)
    sizes = Sizes(len(every.ids) // 2, tuple(len(tiles) // 3 for tiles in every.tiles))
    batch = assemble(parts, CPU, sizes, random.Random(3))
    assert [len(tiles) for tiles in batch.tiles] == list(sizes.pictures)
    assert len(batch.ids) == sizes.rows
    flat = [tile for tiles in batch.tiles for tile in tiles]
    filled = 0
    for row in range(sizes.rows):
        samples = [s for s in batch.sample[row].unique().tolist() if s >= 0]
        for sample in samples:
            first, count = shard.image_range[sample % len(shard)]
            slots = [slot for slot in batch.pictures[row].tolist() if slot >= 0]
            assert len(slots) == count
            for slot, picture in zip(slots, range(first, first + count), strict=True):
                tiles = shard.tiles[shard.tile_start[picture] : shard.tile_start[picture + 1]]
                assert np.array_equal(flat[slot].numpy(), tiles)
        filled += bool(samples)
    assert filled > 0


def run(out: Path, vocabulary: Path, *more: str) -> dict[str, object]:
    arguments = train.parser().parse_args(
        [str(out), "--device", "cpu", "--workers", "1", "--shards", "1", "--shard-groups", "6", "--max-steps", "3",
         "--vocabulary", str(vocabulary), "--shape", json.dumps(TINY), "--evaluate", "4", *more]
    )  # fmt: skip
    return train.train(arguments)


def test_a_run_leaves_a_checkpoint_that_answers_and_a_state_to_resume(vocabulary: Path, tmp_path: Path) -> None:
    first = run(tmp_path / "one", vocabulary)
    assert first["steps"] == 3
    second = run(tmp_path / "two", vocabulary, "--resume", str(tmp_path / "one"))
    assert second["steps"] == 6
    assert second["next_seed"] > first["next_seed"], "no sample is seen as new twice"
    assert second["accuracy"]
    one, two = (load_file(tmp_path / name / "weights.safetensors") for name in ("one", "two"))
    assert any(not torch.equal(one[name], two[name]) for name in one)
    shutil.copytree(vocabulary, tmp_path / "model")
    train.export(tmp_path / "two", tmp_path / "model", TINY)
    engine = load(tmp_path / "model", device="cpu")
    assert sum(1 for _ in engine.stream(Conversation.ask("hello"), Sampling(max_tokens=4))) > 1


def test_the_state_restores_master_weights_and_moments(few: Shard) -> None:
    config = MllamaConfig.from_dict(model_config.config(**TINY))
    batch = assemble([(few, torch.from_numpy(few.tiles), pack_rows(few, 192))], CPU)
    trainer = Trainer(new_network(config, CPU), torch.float32)
    for _ in range(3):
        trainer.step(batch, 1e-3)
    other = Trainer(new_network(config, CPU, seed=1), torch.float32)
    other.restore(trainer.state(), 3)
    for mine, theirs in zip(trainer.masters, other.masters, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)
    losses = [float(it.step(batch, 1e-3)) for it in (trainer, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_the_learning_rate_warms_up_and_falls() -> None:
    rates = [train.learning_rate(progress, 1000, 1.0, 100) for progress in (0, 0.25, 0.5, 1.0, 2.0)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == 1.0
    assert rates[-1] == pytest.approx(0.01)
    assert train.learning_rate(0, 9, 1.0, 100) == pytest.approx(0.1)
