"""Images decoded in other processes: in order, ahead but not too far, and one that kills its worker fails alone."""

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from mllama_cli.captioning.decoding import TASKS_PER_WORKER, DecodingPool
from mllama_cli.captioning.listing import ImageEntry
from mllama_cli.core.config import ImageProcessorConfig
from mllama_cli.core.conversation import MeasuredImage
from mllama_cli.core.errors import ImageNotFoundError, MllamaError
from mllama_cli.processing.image_processor import MllamaImageProcessor
from mllama_cli.processing.prepared import PreparedImage
from tests.processing.traps import trap

CONFIG = ImageProcessorConfig(tile_size=56)


@dataclass
class Job:
    entry: ImageEntry


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    paths = []
    for number in range(12):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (40 + number, 30), (number, 0, 0)).save(path)
        paths.append(str(path))
    return paths


def results(pool: DecodingPool, paths: Iterable[str]) -> Iterator[PreparedImage | MllamaError]:
    for item in pool.decode((Job(ImageEntry(path, path)) for path in paths), CONFIG):
        if item is None:
            continue
        _, decoding = item
        assert decoding.done()
        error = decoding.exception()
        assert error is None or isinstance(error, MllamaError)
        yield error or decoding.result()


@pytest.mark.parametrize("workers", [0, 2])
def test_results_come_in_order_and_equal_the_processor_s(images: list[str], workers: int, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_text("no picture")
    processor = MllamaImageProcessor(CONFIG)
    with DecodingPool(workers) as pool:
        decoded = list(results(pool, [*images[:3], str(tmp_path / "bad.png"), *images[3:]]))
    bad = decoded.pop(3)
    assert isinstance(bad, MllamaError)
    assert bad.message.startswith(f"{tmp_path}/bad.png ")
    assert bad.hint
    for path, result in zip(images, decoded, strict=True):
        assert isinstance(result, PreparedImage)
        with Image.open(path) as image:
            assert (result.width, result.height) == image.size
            expected = processor(image)[0]
        made = processor.normalise(result.canvas)
        assert np.array_equal(made.pixel_values, expected.pixel_values)
        assert made.aspect_ratio_id == expected.aspect_ratio_id
        assert "digest" in vars(result), "computed in advance"


def test_without_canvases_images_come_as_they_are(images: list[str], tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_text("no picture")
    paths = [images[3], str(tmp_path / "bad.png")]
    with DecodingPool(1) as pool:
        decodings = [
            each for each in pool.decode((Job(ImageEntry(p, p)) for p in paths), CONFIG, canvases=False) if each
        ]
    image = decodings[0][1].result()
    assert (type(image), image.width, image.height) == (MeasuredImage, 43, 30)
    assert image.data == Path(images[3]).read_bytes()
    assert isinstance(decodings[1][1].exception(), MllamaError)


def test_the_list_is_pulled_no_further_than_the_workers_need(images: list[str]) -> None:
    pulled = []

    def paths() -> Iterator[str]:
        for path in images * 10:
            pulled.append(path)
            yield path

    with DecodingPool(1) as pool:
        decoded = results(pool, paths())
        for _ in range(5):
            next(decoded)
        assert len(pulled) <= 5 + TASKS_PER_WORKER


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_an_image_that_kills_its_worker_fails_alone(images: list[str], tmp_path: Path) -> None:
    path = tmp_path / "trap.png"
    with trap(path), DecodingPool(1) as pool:
        decoded = results(pool, [*images[:2], str(path), *images[2:]])
        first = [next(decoded), next(decoded)]
        crashed = next(decoded)
        rest = list(decoded)
    assert isinstance(crashed, MllamaError)
    assert "crashes the image decoder" in crashed.message
    assert all(isinstance(result, PreparedImage) for result in [*first, *rest])
    assert len(rest) == len(images) - 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="kills as POSIX does")
def test_no_worker_outlives_a_killed_run(images: list[str]) -> None:
    script = (
        "import sys, time, types\n"
        "from mllama_cli.captioning.decoding import DecodingPool\n"
        "from mllama_cli.captioning.listing import ImageEntry\n"
        "from mllama_cli.core.config import ImageProcessorConfig\n"
        "pool = DecodingPool(2)\n"
        "jobs = [types.SimpleNamespace(entry=ImageEntry(path, path)) for path in sys.argv[1:]]\n"
        "print(sum(item is not None for item in pool.decode(jobs, ImageProcessorConfig(tile_size=56))), flush=True)\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, *images], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "12\n"
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


def test_a_missing_file_is_an_error_of_its_own(tmp_path: Path) -> None:
    with DecodingPool(0) as pool:
        [error] = results(pool, [str(tmp_path / "gone.png")])
    assert isinstance(error, ImageNotFoundError)
    assert error.message.startswith("no such picture")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_an_image_that_takes_too_long_is_named_and_the_others_are_decoded(images: list[str], tmp_path: Path) -> None:
    stuck = tmp_path / "stuck.png"  # waits for ever, as a decoder in C does: deaf to everything but a kill
    os.mkfifo(stuck)
    with DecodingPool(2, seconds=2) as pool:
        decoded = list(results(pool, [images[0], str(stuck), *images[1:]]))
    late = decoded.pop(1)
    assert isinstance(late, MllamaError)
    assert late.message == f"{stuck} takes longer than 2 seconds to read and decode"
    assert len(decoded) == len(images)
    assert all(isinstance(result, PreparedImage) for result in decoded)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_closing_ends_workers_that_are_stuck(images: list[str], tmp_path: Path) -> None:
    stuck = tmp_path / "stuck.png"
    os.mkfifo(stuck)
    others = psutil.Process().children()
    with DecodingPool(1) as pool:
        items = pool.decode((Job(ImageEntry(path, path)) for path in [images[0], str(stuck)]), CONFIG)
        while next(items) is None:
            pass
        assert next(items) is None
        workers = [each for each in psutil.Process().children() if each not in others]
        assert workers
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive


def test_large_images_take_turns(images: list[str]) -> None:
    paths = []
    for path in images[:2]:
        Image.new("L", (7100, 7100)).save(path, compress_level=1)
        paths.append(path)
    with DecodingPool(3) as pool:
        assert [type(result) for result in results(pool, paths + images[2:])] == [PreparedImage] * len(images)
