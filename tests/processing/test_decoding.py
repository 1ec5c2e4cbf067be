"""Images decoded in worker processes: by many threads, within limits, and in place where that is quick."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from mllama_cli.core.config import ImageProcessorConfig
from mllama_cli.core.conversation import ImagePart
from mllama_cli.core.errors import ImageError
from mllama_cli.processing.decoding import Decoder, decode_image
from mllama_cli.processing.limits import WORKER_BYTES
from mllama_cli.processing.prepared import PreparedImage, prepare_image
from mllama_cli.processing.shared_memory import SHARED_BYTES, attach, share
from tests.processing.pictures import file_of, noise
from tests.processing.traps import trap

CONFIG = ImageProcessorConfig(tile_size=56)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "AVIF"])
def test_a_worker_gives_what_decoding_here_gives(format: str) -> None:
    part = ImagePart(file_of(noise(150, 90), format), "photo")
    expected = prepare_image(part, CONFIG)
    decoder = Decoder(1)
    for image in (decoder.decode(part, CONFIG), decode_image(part, CONFIG)):
        assert (image, image.digest, image.config) == (expected, expected.digest, CONFIG)
        assert (image.width, image.height, image.canvas.size) == (150, 90, expected.canvas.size)
        assert image.canvas.aspect_ratio_id == expected.canvas.aspect_ratio_id
        assert np.array_equal(image.canvas.pixels, expected.canvas.pixels)
        assert np.array_equal(image.canvas.image(), expected.canvas.image())
        assert decoder.decode(image, CONFIG) is image, "decoded once"
    decoder.close()


@pytest.mark.parametrize("shared", [True, False])
def test_pixels_come_in_memory_that_the_caller_chooses(shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """From memory that the worker shares, or through a pipe where the system has none."""
    if not shared:
        monkeypatch.setattr("mllama_cli.processing.decoder_process.share", lambda: None)
    part, made = ImagePart(file_of(noise(150, 90), "PNG"), "photo"), []

    def buffer(size: int) -> memoryview:
        made.append(bytearray(size))
        return memoryview(made[-1])

    decoder = Decoder(1, buffer=buffer)
    image = decoder.decode(part, CONFIG)
    decoder.close()
    assert np.array_equal(image.canvas.pixels, prepare_image(part, CONFIG).canvas.pixels)
    made[0][0] ^= 255
    assert image.canvas.pixels.flat[0] == made[0][0], "a copy"


def test_what_does_not_fit_into_shared_memory_comes_through_the_pipe(tmp_path: Path) -> None:
    """Such as a canvas with a file that the worker has read."""
    file = tmp_path / "large.bmp"
    noise(1300, 1200).save(file)
    assert file.stat().st_size > SHARED_BYTES
    decoder = Decoder(1)
    for _ in range(2):
        image = decoder.decode_file(str(file), CONFIG)
        assert image.data == file.read_bytes()
        expected = prepare_image(ImagePart(image.data, "here"), CONFIG)
        assert np.array_equal(image.canvas.pixels, expected.canvas.pixels)
        assert decoder.decode(ImagePart(file_of(noise(80, 90)), "small"), CONFIG).width == 80
    decoder.close()


@pytest.mark.skipif(sys.platform != "linux", reason="Linux has memory that can be sealed")
def test_a_worker_cannot_take_shared_memory_away() -> None:
    shared = share()
    assert shared is not None
    descriptor, memory = shared
    with pytest.raises(PermissionError):
        os.ftruncate(descriptor, 0)
    attached = attach(descriptor)
    attached[:5] = b"tiles"
    assert memory[:5] == b"tiles"


def test_many_threads_share_few_workers() -> None:
    decoder = Decoder(2)
    parts = [ImagePart(file_of(Image.new("RGB", (20 + number, 10))), str(number)) for number in range(40)]
    before = psutil.Process().children()
    with ThreadPoolExecutor(8) as threads:
        images = list(threads.map(lambda part: decoder.decode(part, CONFIG), parts))
    assert [image.width for image in images] == list(range(20, 60))
    assert [image.name for image in images] == [part.name for part in parts]
    workers = [each for each in psutil.Process().children() if each not in before]
    assert 1 <= len(workers) <= 2
    decoder.close()
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive
    with pytest.raises(ImageError, match="closed"):
        decoder.decode(parts[0], CONFIG)


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"", "x is empty"), (b"hello", "x is not a picture: it looks like text"), (b"GIF89a", "x is damaged")],
)
def test_errors_are_those_of_decoding_here(data: bytes, message: str) -> None:
    decoder = Decoder(1)
    with pytest.raises(ImageError) as here:
        prepare_image(ImagePart(data, "x"), CONFIG)
    with pytest.raises(ImageError) as there:
        decoder.decode(ImagePart(data, "x"), CONFIG)
    assert (there.value.message, there.value.hint) == (here.value.message, here.value.hint)
    assert there.value.message.startswith(message)
    assert decoder.decode(ImagePart(file_of(noise(9, 9))), CONFIG).width == 9, "the worker goes on"
    decoder.close()


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="stops a process as POSIX does")
def test_an_image_that_takes_too_long_is_named_and_its_worker_replaced() -> None:
    decoder = Decoder(1)
    part = ImagePart(file_of(noise(9, 9)), "slow.png")
    before = psutil.Process().children()
    decoder.decode(part, CONFIG)
    [worker] = [each for each in psutil.Process().children() if each not in before]
    worker.suspend()  # deaf to everything but a kill, as a decoder in C is
    with pytest.raises(ImageError, match=r"slow\.png takes longer than 0\.5 seconds"):
        decoder.decode(part, CONFIG, seconds=0.5)
    assert not worker.is_running()
    assert decoder.decode(part, CONFIG).width == 9
    decoder.close()


def test_paths_are_relative_to_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder(1)
    for width, folder in ((9, tmp_path / "one"), (17, tmp_path / "two")):
        folder.mkdir()
        (folder / "photo.png").write_bytes(file_of(noise(width, 9)))
        monkeypatch.chdir(folder)
        assert decoder.decode_file("photo.png", CONFIG).width == width
    decoder.close()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_an_image_that_kills_every_worker_is_named(tmp_path: Path) -> None:
    decoder = Decoder(1)
    with trap(tmp_path / "trap.png"), pytest.raises(ImageError, match=r"trap\.png crashes the image decoder"):
        decoder.decode_file(str(tmp_path / "trap.png"), CONFIG)
    assert decoder.decode(ImagePart(file_of(noise(9, 9))), CONFIG).width == 9
    decoder.close()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such limit")
def test_a_worker_cannot_take_all_memory() -> None:
    code = "from mllama_cli.processing.worker_process import limit_memory\n"
    code += f"limit_memory({WORKER_BYTES})\nbytearray({WORKER_BYTES})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.endswith("MemoryError\n")


def test_only_quick_pictures_are_decoded_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def decode(_: Decoder, image: ImagePart, config: ImageProcessorConfig, *, seconds: float) -> PreparedImage:
        opened.append(image.name)
        return prepare_image(image, config)

    monkeypatch.setattr(Decoder, "decode", decode)
    many_passes = file_of(noise(64, 64), "JPEG", progressive=True)
    scan = many_passes[many_passes.rindex(b"\xff\xda") : -2]
    parts = {
        "plain.png": file_of(noise(9, 9)),
        "plain.jpg": file_of(noise(9, 9), "JPEG"),
        "progressive.jpg": many_passes,
        "scans.jpg": many_passes[:-2] + 10 * scan + many_passes[-2:],
        "huge.png": file_of(Image.new("RGB", (9000, 9000)), compress_level=1),
        "foreign.webp": file_of(noise(9, 9), "WEBP"),
        "damaged.gif": b"GIF89a",
    }
    for name, data in parts.items():
        try:
            decode_image(ImagePart(data, name), CONFIG)
        except ImageError:
            assert name.startswith("damaged")
    assert opened == ["scans.jpg", "huge.png", "foreign.webp", "damaged.gif"]


def test_no_worker_outlives_its_process_or_runs_the_user_s_script(tmp_path: Path) -> None:
    script = tmp_path / "script.py"  # without the usual guard of multiprocessing
    script.write_text(
        "import os, psutil\n"
        "from mllama_cli.core.config import ImageProcessorConfig\n"
        "from mllama_cli.core.conversation import ImagePart\n"
        "from mllama_cli.processing.decoding import shared_decoder\n"
        "import sys\n"
        "part = ImagePart(open(sys.argv[1], 'rb').read())\n"
        "print(shared_decoder().decode(part, ImageProcessorConfig()).width)\n"
        "print(*[each.pid for each in psutil.Process().children()])\n"
    )
    picture = tmp_path / "p.webp"
    picture.write_bytes(file_of(noise(9, 9), "WEBP"))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, script, picture], capture_output=True, text=True, check=True, env=env)
    width, workers = done.stdout.splitlines()
    assert (width, done.stderr) == ("9", "")
    assert len(workers.split()) == 1
    assert not any(psutil.pid_exists(int(worker)) for worker in workers.split())
