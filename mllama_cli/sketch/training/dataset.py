"""Samples as compact arrays, made by many processes ahead of the GPU: tiles, token ids and the loss mask."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mllama_cli.processing.canvas import choose_canvas, fit_to_canvas, supported_aspect_ratios
from mllama_cli.processing.tokenizer import MllamaTokenizer
from mllama_cli.sketch.questions.samples import TASKS, Sample, Turn, make_group
from mllama_cli.sketch.training.form_tokens import form_pieces

MAX_TILES = 4


@dataclass(frozen=True)
class Shard:
    """Samples in flat arrays; ``*_start`` has one more entry than there are items and ends with the total.

    Attributes:
        tiles: [tiles, side, side, 3] uint8, the tiles of all images concatenated, without unused ones.
        tile_start: [images + 1], where each image's tiles begin.
        aspect_ratio_id: [images], as the image processor gives it, from 1.
        image_range: [samples, 2], a sample's first image and its number of images. Samples share images.
        ids: token ids of all conversations, from begin_of_text to the last answer's eot_id.
        answer: for each id whether the model has to choose it, so that its loss counts: those of answers (eot_id
            included) but for what a schema leaves no choice of.
        id_start: [samples + 1].
        task: [samples], the index in ``samples.TASKS``.
    """

    tiles: NDArray[np.uint8]
    tile_start: NDArray[np.int32]
    aspect_ratio_id: NDArray[np.uint8]
    image_range: NDArray[np.int32]
    ids: NDArray[np.uint16]
    answer: NDArray[np.bool_]
    id_start: NDArray[np.int32]
    task: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.task)

    def save(self, path: Path) -> None:
        """Write an uncompressed .npz file."""
        np.savez(path, **{field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def load(cls, path: Path) -> "Shard":
        with np.load(path) as arrays:
            return cls(**{field.name: arrays[field.name] for field in fields(cls)})


def render_shard(
    first_seed: int,
    groups: int,
    tokenizer_folder: str | Path,
    *,
    tile_size: int,
    group_size: int = 4,
    forms: int = 0,
    fonts_dir: str | None = None,
) -> Shard:
    """Render the samples of ``groups`` seeds from ``first_seed`` on, up to ``group_size`` about the same images each.

    Up to ``forms`` more of each are answered in JSON.

    All arguments can be pickled.
    """
    seeds = range(first_seed, first_seed + groups)
    samples = [sample for seed in seeds for sample in make_group(seed, group_size, fonts_dir, forms)]
    return pack(samples, tokenizer_folder, tile_size)


def pack(samples: Sequence[Sample], tokenizer_folder: str | Path, tile_size: int) -> Shard:
    """Pack samples into a shard; neighbours with the same images share them."""
    tokenizer = _tokenizer(str(tokenizer_folder))
    tiles: list[NDArray[np.uint8]] = []
    ratios: list[int] = []
    ranges: list[tuple[int, int]] = []
    ids: list[int] = []
    counts: list[bool] = []
    starts = [0]
    last: tuple[Image.Image, ...] | None = None
    for sample in samples:
        if sample.images is not last:
            for image in sample.images:
                cut, ratio = cut_tiles(image, tile_size)
                tiles.append(cut)
                ratios.append(ratio)
            last = sample.images
        ranges.append((len(ratios) - len(sample.images), len(sample.images)))
        for piece, is_answer in encode_sample(tokenizer, sample):
            ids.extend(piece)
            counts.extend([is_answer] * len(piece))
        starts.append(len(ids))
    sizes = [len(cut) for cut in tiles]
    none = np.zeros((0, tile_size, tile_size, 3), dtype=np.uint8)
    return Shard(
        tiles=np.concatenate(tiles) if tiles else none,
        tile_start=np.cumsum([0, *sizes], dtype=np.int32),
        aspect_ratio_id=np.array(ratios, dtype=np.uint8),
        image_range=np.array(ranges, dtype=np.int32).reshape(-1, 2),
        ids=np.array(ids, dtype=np.uint16),
        answer=np.array(counts, dtype=np.bool_),
        id_start=np.array(starts, dtype=np.int32),
        task=np.array([TASKS.index(sample.task) for sample in samples], dtype=np.uint8),
    )


def cut_tiles(image: Image.Image, tile_size: int) -> tuple[NDArray[np.uint8], int]:
    """Return the image processor's tiles before normalisation, [tiles, side, side, 3], and the aspect ratio id."""
    ratios = supported_aspect_ratios(MAX_TILES)
    size = image.height, image.width
    rows, columns = choose_canvas(size, ratios, tile_size)
    height, width = fit_to_canvas(size, (rows * tile_size, columns * tile_size), tile_size)
    canvas = np.zeros((rows * tile_size, columns * tile_size, 3), dtype=np.uint8)
    canvas[:height, :width] = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    tiles = canvas.reshape(rows, tile_size, columns, tile_size, 3).transpose(0, 2, 1, 3, 4)
    return tiles.reshape(-1, tile_size, tile_size, 3), ratios.index((rows, columns)) + 1


def encode_sample(tokenizer: MllamaTokenizer, sample: Sample) -> list[tuple[list[int], bool]]:
    """Tokenize the conversation and its answer, in pieces; True marks the model's turns.

    Equals the chat template (a test compares them) and is faster than Jinja.
    """
    special = tokenizer.special_ids
    pieces: list[tuple[list[int], bool]] = [([special["<|begin_of_text|>"]], False)]
    for turn in (*sample.messages, Turn("assistant", "")):
        head = [special["<|start_header_id|>"], *_constant(tokenizer, turn.role), special["<|end_header_id|>"]]
        head += _constant(tokenizer, "\n\n")
        for number in range(1, len(turn.images) + 1):
            head.append(special["<|image|>"])
            if len(turn.images) > 1:
                head += _constant(tokenizer, f"This is picture {number} of {len(turn.images)}.\n")
        pieces.append((head, False))
        if turn.text:
            pieces.append(([*tokenizer.encode(turn.text.strip()), special["<|eot_id|>"]], turn.role == "assistant"))
    if sample.task == "json":
        return [*pieces, *form_pieces(tokenizer, sample.answer, sample.schema), ([special["<|eot_id|>"]], True)]
    return [*pieces, ([*tokenizer.encode(sample.answer), special["<|eot_id|>"]], True)]


@lru_cache(maxsize=64)
def _constant(tokenizer: MllamaTokenizer, text: str) -> list[int]:
    return tokenizer.encode(text)


@lru_cache(maxsize=4)
def _tokenizer(folder: str) -> MllamaTokenizer:
    return MllamaTokenizer.from_pretrained(Path(folder))
