"""Damaged pictures of each format."""

import pytest

from mllama_cli.core.conversation import ImagePart
from mllama_cli.processing.images import open_image
from mllama_cli.processing.sniff import not_a_picture
from tests.fuzz.conftest import Fuzz
from tests.fuzz.inputs import damaged
from tests.processing.pictures import png_chunk
from tests.processing.samples import SAMPLES

PIECES = (
    b"\xff\xd8\xff\xda", b"\xff\xc4\0\2", b"\xff\xdd\0\4\0\1", b"\xff\xc2", png_chunk(b"IDAT", b""), b"eXIf", b"tRNS",
    b"VP8X", b"ALPH", b"ftypavis", b"\xff\x4f\xff\x51", b"II+\0", b"MM\0*",
)  # fmt: skip


@pytest.mark.parametrize("format", SAMPLES)
def test_a_picture(format: str, fuzz: Fuzz) -> None:
    def read(data: bytes) -> None:
        not_a_picture(data)
        image = open_image(ImagePart(data, "p"))
        assert image.mode == "RGB"
        assert min(image.size) >= 1

    samples = SAMPLES[format]
    if not samples:
        pytest.skip("the heic extra is not installed")
    for sample in samples:
        read(sample)
    fuzz(read, damaged(samples, PIECES))
