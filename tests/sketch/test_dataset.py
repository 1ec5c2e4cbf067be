"""Shards equal what the image processor and the tokenizer give."""

from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from mllama_cli.core.config import ImageProcessorConfig
from mllama_cli.processing.image_processor import MllamaImageProcessor
from mllama_cli.processing.tokenizer import MllamaTokenizer
from mllama_cli.sketch.questions import samples
from mllama_cli.sketch.questions.samples import TASKS, make_group
from mllama_cli.sketch.scenes import compose
from mllama_cli.sketch.training.dataset import Shard, cut_tiles, pack, render_shard


@pytest.mark.parametrize("size", [(64, 64), (112, 90), (300, 300), (900, 300), (200, 800), (500, 250), (113, 112)])
@pytest.mark.parametrize("side", [112, 140])
def test_tiles_are_the_processors(size: tuple[int, int], side: int) -> None:
    image = Image.effect_noise(size, 90).convert("RGB")
    processor = MllamaImageProcessor(ImageProcessorConfig(tile_size=side))
    expected = processor(image)[0]
    tiles, ratio = cut_tiles(image, side)
    assert ratio == expected.aspect_ratio_id
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (processor.config.image_mean, processor.config.image_std))
    pixels = (torch.from_numpy(tiles.transpose(0, 3, 1, 2).copy()) / 255 - mean) / std
    torch.testing.assert_close(pixels, expected.pixel_values)


def test_a_shard_holds_the_samples(vocabulary: Path, tmp_path: Path) -> None:
    samples = [sample for seed in range(20) for sample in make_group(seed, 3)]
    shard = pack(samples, vocabulary, 112)
    tokenizer = MllamaTokenizer.from_pretrained(vocabulary)
    assert len(shard) == len(samples)
    assert shard.tile_start[-1] == len(shard.tiles)
    for number, sample in enumerate(samples):
        span = slice(shard.id_start[number], shard.id_start[number + 1])
        ids, answer = shard.ids[span], shard.answer[span]
        said = tokenizer.decode(ids[answer].tolist())
        assert said.endswith(sample.answer)
        assert (ids == 1024).sum() == len(sample.images) == shard.image_range[number, 1]
        assert TASKS[shard.task[number]] == sample.task
        first = shard.image_range[number, 0]
        for index, image in enumerate(sample.images, first):
            tiles, ratio = cut_tiles(image, 112)
            assert shard.aspect_ratio_id[index] == ratio
            start, end = shard.tile_start[index : index + 2]
            assert np.array_equal(shard.tiles[start:end], tiles)
    assert len(shard.aspect_ratio_id) < sum(len(sample.images) for sample in samples)
    shard.save(tmp_path / "shard.npz")
    again = Shard.load(tmp_path / "shard.npz")
    assert np.array_equal(again.tiles, shard.tiles)
    assert np.array_equal(again.ids, shard.ids)


def test_every_answer_of_a_conversation_counts(vocabulary: Path) -> None:
    [sample] = [s for s in make_group(3, 40) if s.task == "follow-up"][:1]
    shard = pack([sample], vocabulary, 112)
    tokenizer = MllamaTokenizer.from_pretrained(vocabulary)
    said = tokenizer.decode(shard.ids[shard.answer].tolist())
    assert said == "".join(turn.text for turn in sample.messages if turn.role == "assistant") + sample.answer
    assert (shard.ids[shard.answer] == tokenizer.special_ids["<|eot_id|>"]).sum() == (len(sample.messages) + 1) // 2


def test_all_kinds_of_canvas_occur_and_work_is_not_wasted(vocabulary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rendering is the bottleneck of training, so each image is drawn once, and few compositions are discarded."""
    spies = {}
    for module, name in ((samples, "render"), (samples, "out_of_domain_image"), (compose, "choose_background")):
        spies[name] = Mock(wraps=getattr(module, name))
        monkeypatch.setattr(module, name, spies[name])
    shard = render_shard(0, 150, vocabulary, tile_size=112)
    assert {1, 2, 3, 6}.issubset(shard.aspect_ratio_id.tolist())
    assert len(set(shard.aspect_ratio_id.tolist())) >= 7
    assert len(shard) > 3 * 150
    assert spies["render"].call_count + spies["out_of_domain_image"].call_count == len(shard.aspect_ratio_id)
    assert spies["choose_background"].call_count < 1.3 * spies["render"].call_count
