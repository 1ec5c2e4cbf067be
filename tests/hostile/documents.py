"""PDF documents and videos: cut, damaged, small files of large content, and files that lie about themselves."""

import random
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from mllama_cli.processing.decoding import Decoder
from mllama_cli.processing.documents import read_source
from tests.documents import DOCUMENTS
from tests.hostile.cases import Case
from tests.processing.pdf_files import pdf_of, pdf_with_picture, stream_of

SECONDS = 20.0
"""Time for a document."""
SAMPLES = sorted(path for path in DOCUMENTS.iterdir() if path.suffix not in (".sh", ".gif"))
DAMAGES = 20


def _packed(content: bytes, entries: str = "") -> bytes:
    return stream_of(zlib.compress(content), f"/Filter/FlateDecode{entries}")


def _drawing(operators: bytes, count: int) -> bytes:
    """Return a page that repeats operators, packed."""
    return pdf_of(resources="/XObject<</P 5 0 R>>", contents=b"/P Do", objects=[
        _packed(operators * count, "/Type/XObject/Subtype/Form/BBox[0 0 200 100]"),
    ])  # fmt: skip


def _nested(depth: int, copies: int) -> bytes:
    """Return a page with forms in forms, each of which draws the next one several times."""
    forms = [
        stream_of(
            b"/P Do " * copies, f"/Type/XObject/Subtype/Form/BBox[0 0 9 9]/Resources<</XObject<</P {6 + n} 0 R>>>>"
        )
        for n in range(depth)
    ]
    last = stream_of(b"0 0 1 1 re f", "/Type/XObject/Subtype/Form/BBox[0 0 9 9]")
    return pdf_of(resources="/XObject<</P 5 0 R>>", contents=b"/P Do", objects=[*forms, last])


def _tiled(step: str) -> bytes:
    pattern = (
        f"/Type/Pattern/PatternType 1/PaintType 1/TilingType 1/BBox[0 0 1 1]/XStep {step}/YStep {step}/Resources<<>>"
    )
    return pdf_of(
        resources="/Pattern<</P 5 0 R>>",
        contents=b"/Pattern cs /P scn 0 0 200 100 re f",
        objects=[stream_of(b"0 0 1 1 re f", pattern)],
    )


BOMBS: dict[str, Callable[[], bytes]] = {
    "pdf of 10,001 pages": lambda: pdf_of(10_001),
    "pdf that declares 2^31 pages": lambda: pdf_of(2, count=2**31 - 1),
    "pdf that declares -1 page": lambda: pdf_of(2, count=-1),
    "pdf without pages": lambda: pdf_of(0),
    "pdf whose pages contain themselves": lambda: pdf_of(2).replace(b"Kids[5 0 R 6 0 R]", b"Kids[2 0 R 2 0 R]"),
    "pdf picture of 169 M pixels": lambda: pdf_with_picture(13_000, 13_000, zlib.compress(bytes(169_000_000), 1)),
    "pdf picture of 100 M pixels": lambda: pdf_with_picture(10_000, 10_000, zlib.compress(bytes(100_000_000), 1)),
    "pdf picture that lies about its size": lambda: pdf_with_picture(60_000, 60_000, zlib.compress(bytes(99))),
    "pdf picture of -1 x 2^31": lambda: pdf_with_picture(-1, 2**31 - 1, zlib.compress(bytes(99))),
    "pdf picture packed ten times": lambda: pdf_with_picture(
        9000, 9000, _repacked(bytes(81_000_000), 10), "[" + "/FlateDecode" * 10 + "]"
    ),
    "pdf of 10 M operators": lambda: _drawing(b"0 0 1 1 re f\n", 10_000_000),
    "pdf of 2 M curves": lambda: _drawing(b"0 0 m 200 0 0 100 200 100 c S\n", 2_000_000),
    "pdf of 1 M saved states": lambda: _drawing(b"q\n", 1_000_000),
    "pdf of 2^40 nested forms": lambda: _nested(40, 2),
    "pdf of a deep stack of forms": lambda: _nested(3000, 1),
    "pdf of tiny tiles": lambda: _tiled("0.00001"),
    "pdf of tiles without a step": lambda: _tiled("0"),
    "pdf of a huge page": lambda: pdf_of(box="0 0 1e9 1e9"),
    "pdf of a page without area": lambda: pdf_of(box="0 0 0 0"),
    "pdf of a page that is not a number": lambda: pdf_of(box="0 0 nan inf"),
    "pdf whose cross-references go in a circle": lambda: pdf_of().replace(b"/Root", b"/Prev 9/Root"),
    "pdf of nested arrays": lambda: pdf_of(contents=b"[" * 1_000_000),
    "pdf header alone": lambda: b"%PDF-1.7\n",
    "mp4 header alone": lambda: b"\0\0\0\x18ftypmp42" + bytes(99),
    "mp4 of nested boxes": lambda: b"\0\0\0\x18ftypmp42" + bytes(12) + b"\0\0\xff\xffmoov\0\0\xff\xfetrak" * 9000,
    "mp4 that goes on for 2^32 samples": lambda: _patched("clip.mp4", b"stts", 4, b"\xff" * 12),
    "mp4 of 2^32 chunks": lambda: _patched("clip.mp4", b"stco", 4, b"\xff" * 4),
    "mp4 whose time stands still": lambda: _patched("clip.mp4", b"mdhd", 12, bytes(4)),
    "mp4 of a year": lambda: _patched("clip.mp4", b"mdhd", 16, b"\x7f\xff\xff\xff"),
    "mkv of clusters": lambda: (DOCUMENTS / "live.mkv").read_bytes()[:400] + b"\x1f\x43\xb6\x75\x01" * 99_999,
    "webm of 67 M pixels": lambda: (DOCUMENTS / "huge.webm").read_bytes(),
    "mov of frames of 900 M pixels": lambda: (DOCUMENTS / "clip.mov").read_bytes().replace(
        b"\x08\x00\x30\x00\x40", b"\x08" + (30_000).to_bytes(2) * 2
    ),
    "a playlist that names a file": lambda: b"#EXTM3U\n#EXTINF:1\nfile:///etc/passwd\n",
    "a script of files to join": lambda: b"ffconcat version 1.0\nfile /etc/passwd\n",
}  # fmt: skip


def cases() -> Iterator[Case]:
    """Yield an attempt to read each document, in a decoder of its own."""
    for name, make in BOMBS.items():
        yield _case(name, make, heavy=True)
    for sample in SAMPLES:
        data = sample.read_bytes()
        for number in range(DAMAGES):
            yield _case(f"{sample.name}, damage {number}", lambda data=data, number=number: _damaged(data, number))


def _case(name: str, make: Callable[[], bytes], *, heavy: bool = False) -> Case:
    def attempt(folder: Path) -> None:
        with closing(Decoder(1, seconds=SECONDS)) as decoder:
            read_source(folder / "document", decoder=decoder)

    return Case(name, attempt, heavy, lambda folder: (folder / "document").write_bytes(make()))


def _damaged(data: bytes, number: int) -> bytes:
    """Return data cut somewhere, or with some bytes changed."""
    source = random.Random(f"{len(data)} {number}")
    if number % 2:
        return data[: source.randrange(len(data))]
    changed = bytearray(data)
    for _ in range(source.randrange(1, 20)):
        changed[source.randrange(8, len(data))] = source.randrange(256)
    return bytes(changed)


def _patched(name: str, box: bytes, offset: int, value: bytes) -> bytes:
    """Return a file with a value written into one of its boxes."""
    data = (DOCUMENTS / name).read_bytes()
    start = data.index(box) + 4 + offset
    return data[:start] + value + data[start + len(value) :]


def _repacked(data: bytes, times: int) -> bytes:
    for _ in range(times):
        data = zlib.compress(data, 1)
    return data
