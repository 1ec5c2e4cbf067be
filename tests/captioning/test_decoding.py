"""Pictures decoded in other processes: in order, ahead but not too far, and one that kills its worker costs itself."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from mllama_cli.captioning.decoding import TASKS_PER_WORKER, Decoded, DecodingPool, decode
from mllama_cli.core.config import ImageProcessorConfig
from mllama_cli.core.errors import MllamaError
from mllama_cli.processing.image_processor import MllamaImageProcessor

CONFIG = ImageProcessorConfig(tile_size=56)


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    paths = []
    for number in range(12):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (40 + number, 30), (number, 0, 0)).save(path)
        paths.append(str(path))
    return paths


def ready(results: Iterator[Decoded | MllamaError | None]) -> Iterator[Decoded | MllamaError]:
    return (result for result in results if result is not None)


@pytest.mark.parametrize("workers", [0, 2])
def test_results_come_in_order_and_equal_the_processor_s(pictures: list[str], workers: int, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_text("no picture")
    processor = MllamaImageProcessor(CONFIG)
    with DecodingPool(CONFIG, workers) as pool:
        results = list(ready(pool.decoded([*pictures[:3], str(tmp_path / "bad.png"), *pictures[3:]])))
    assert isinstance(results.pop(3), MllamaError)
    for path, result in zip(pictures, results, strict=True):
        assert isinstance(result, Decoded)
        with Image.open(path) as image:
            assert (result.width, result.height) == image.size
            expected = processor(image)[0]
        made = processor.normalise(result.canvas)
        assert np.array_equal(made.pixel_values, expected.pixel_values)
        assert made.aspect_ratio_id == expected.aspect_ratio_id
        assert "digest" in vars(result.part), "computed in the worker"


def test_the_list_is_pulled_no_further_than_the_workers_need(pictures: list[str]) -> None:
    pulled = []

    def paths() -> Iterator[str]:
        for path in pictures * 10:
            pulled.append(path)
            yield path

    with DecodingPool(CONFIG, 1) as pool:
        results = ready(pool.decoded(paths()))
        for _ in range(5):
            next(results)
        assert len(pulled) <= 5 + TASKS_PER_WORKER


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_picture_that_kills_its_worker_costs_itself_alone(pictures: list[str], tmp_path: Path) -> None:
    trap = tmp_path / "trap.png"  # reading it waits until the worker is killed, as a crashing decoder would be
    os.mkfifo(trap)
    stop = threading.Event()

    def kill_who_waits() -> None:
        while not stop.wait(0.3):
            for server in psutil.Process().children():
                for worker in server.children():
                    worker.send_signal(signal.SIGKILL)

    with DecodingPool(CONFIG, 1) as pool:
        results = pool.decoded([*pictures[:2], str(trap), *pictures[2:]])
        first = [next(ready(results)), next(ready(results))]
        killer = threading.Thread(target=kill_who_waits)
        killer.start()
        crashed = next(ready(results))
        stop.set()
        killer.join()
        rest = list(ready(results))
    assert isinstance(crashed, MllamaError)
    assert "makes the decoder crash" in crashed.message
    assert all(isinstance(result, Decoded) for result in [*first, *rest])
    assert len(rest) == len(pictures) - 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="kills as POSIX does")
def test_no_worker_outlives_a_killed_run(pictures: list[str]) -> None:
    script = (
        "import sys, time\n"
        "from mllama_cli.captioning.decoding import DecodingPool\n"
        "from mllama_cli.core.config import ImageProcessorConfig\n"
        "if __name__ == '__main__':\n"
        "    pool = DecodingPool(ImageProcessorConfig(tile_size=56), 2)\n"
        "    print(sum(r is not None for r in pool.decoded(sys.argv[1:])), flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, *pictures], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "12\n"
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


def test_a_worker_needs_no_torch() -> None:
    code = "import mllama_cli.captioning.decoding, mllama_cli.processing.sources, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_what_vanished_is_an_error_of_its_own(tmp_path: Path) -> None:
    result = decode(str(tmp_path / "gone.png"), CONFIG)
    assert isinstance(result, MllamaError)
    assert "no such picture" in result.message
