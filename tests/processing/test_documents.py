"""Pages of PDF documents and of images, and crops: files of LibreOffice and qpdf, and what no program saves."""

import base64
import subprocess
import sys
import zlib
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from mllama_cli.core.conversation import ImagePart
from mllama_cli.core.errors import ImageError, ImageNotFoundError, MllamaError, UsageError
from mllama_cli.processing.documents import Excerpt, crop_image, read_images, read_source
from mllama_cli.processing.images import open_image
from tests.documents import DOCUMENTS, needs_pdf
from tests.processing.pdf_files import pdf_of, pdf_with_picture
from tests.processing.pictures import file_of, noise

LETTER = DOCUMENTS / "letter.pdf"
RED, GREEN, BLUE = (255, 0, 0), (0, 160, 0), (0, 0, 255)


def saved(folder: Path, data: bytes, name: str = "a.pdf") -> str:
    path = folder / name
    path.write_bytes(data)
    return str(path)


def middle(part: ImagePart) -> tuple[int, ...]:
    image = open_image(part)
    return image.getpixel((image.width // 2, image.height // 3))  # type: ignore[return-value]


def refused(source: str, *words: str) -> MllamaError:
    with pytest.raises(MllamaError) as caught:
        read_images(source)
    assert all(word in caught.value.message for word in words), caught.value.message
    assert caught.value.hint
    return caught.value


@needs_pdf
def test_each_page_is_a_picture_as_large_as_the_canvas() -> None:
    pages = read_images(str(LETTER))
    assert [page.name for page in pages] == [f"{LETTER}#{number}" for number in (1, 2, 3, 4)]
    assert [middle(page) for page in pages[:3]] == [RED, GREEN, BLUE]
    assert {open_image(page).size for page in pages} == {(792, 1120)}


@needs_pdf
def test_chosen_pages_in_the_order_given() -> None:
    assert [middle(page) for page in read_images(f"{LETTER}#2-3")] == [GREEN, BLUE]
    assert [middle(page) for page in read_images(f"{LETTER}#3,1")] == [BLUE, RED]
    assert [middle(page) for page in read_images(str(LETTER), pages="2")] == [GREEN]
    assert [middle(page) for page in read_images(f"{LETTER}#3", pages="2")] == [BLUE], "what the name says comes first"


@needs_pdf
@pytest.mark.parametrize("name", ["protected.pdf", "rotated.pdf"])
def test_a_document_that_opens_without_a_password_and_a_turned_one(name: str) -> None:
    first = read_images(str(DOCUMENTS / name))[0]
    assert middle(first) == RED
    assert open_image(first).size == ((1120, 792) if name == "rotated.pdf" else (792, 1120))


@needs_pdf
def test_documents_from_anywhere() -> None:
    data = LETTER.read_bytes()
    expected = [page.data for page in read_images(str(LETTER))]
    encoded = base64.b64encode(data).decode()
    sources = {"-": "stdin", f"data:application/pdf;base64,{encoded}": "the data: URL", encoded: "the base64 text"}
    for source, name in sources.items():
        pages = read_images(source, BytesIO(data))
        assert [page.data for page in pages] == expected
        assert pages[1].name == f"{name}#2"
        assert [page.data for page in read_images(f"{source}#2-3", BytesIO(data))] == expected[1:3]
    assert [page.data for page in read_images(LETTER.as_uri() + "#4")] == expected[3:]


@needs_pdf
def test_a_file_whose_name_has_a_hash(tmp_path: Path) -> None:
    data = LETTER.read_bytes()
    plain = saved(tmp_path, data, "report#1.pdf")
    assert len(read_images(plain)) == 4
    assert [middle(page) for page in read_images(f"{plain}#2")] == [GREEN]
    assert len(read_images(saved(tmp_path, data, "report.pdf#3"))) == 4, "the file that exists, not a page"
    picture = saved(tmp_path, file_of(noise(9, 9)), "photo#2")
    assert read_images(picture) == (ImagePart(file_of(noise(9, 9)), picture),)
    assert len(read_images(Path(saved(tmp_path, data, "x.pdf")))) == 4
    with pytest.raises(ImageNotFoundError):
        read_images(tmp_path / "x.pdf#2")


@needs_pdf
@pytest.mark.parametrize(
    ("data", "words"),
    [
        ((DOCUMENTS / "encrypted.pdf").read_bytes(), ("is encrypted",)),
        (b"%PDF-1.7\n" + bytes(range(256)) * 20, ("is damaged",)),
        (b"%PDF-", ("is damaged",)),
        (pdf_of(0), ("has no pages",)),
        (pdf_of(10_001), ("has 10,001 pages", "10,000")),
        (pdf_with_picture(60_000, 60_000, zlib.compress(b"")), ("60000 x 60000 pixels",)),
    ],
    ids=["encrypted", "garbage", "header alone", "no pages", "too many pages", "huge picture"],
)
def test_documents_that_are_refused(data: bytes, words: tuple[str, ...], tmp_path: Path) -> None:
    refused(saved(tmp_path, data), "a.pdf", *words)


@needs_pdf
def test_a_document_that_is_cut_short_is_read_or_refused_in_one_line(tmp_path: Path) -> None:
    data = LETTER.read_bytes()
    for length in range(100, len(data), 1500):
        with suppress(ImageError):
            assert read_images(saved(tmp_path, data[:length]))


@needs_pdf
def test_ten_thousand_pages(tmp_path: Path) -> None:
    path = saved(tmp_path, pdf_of(10_000))
    error = refused(path, "has 10,000 pages, and one question takes 100 images")
    assert f"{path}#1-100" in error.hint
    last = read_images(f"{path}#9999-")
    assert [page.name for page in last] == [f"{path}#9999", f"{path}#10000"]
    assert open_image(last[1]).getpixel((5, 500)) == BLUE


@needs_pdf
@pytest.mark.parametrize(
    ("box", "size"),
    [("0 0 1 1", (1120, 1120)), ("0 0 14400 14400", (1120, 1120)), ("0 0 5000 1", (2240, 1)), ("0 0 1 5000", (1, 2240)),
     ("0 0 100 400", (560, 2240))],
)  # fmt: skip
def test_pages_of_any_shape_fill_the_canvas(box: str, size: tuple[int, int], tmp_path: Path) -> None:
    (page,) = read_images(saved(tmp_path, pdf_of(box=box)))
    assert open_image(page).size == size


@needs_pdf
def test_a_file_that_declares_more_pages_than_it_has(tmp_path: Path) -> None:
    path = saved(tmp_path, pdf_of(2, count=5))
    assert len(read_images(f"{path}#1-2")) == 2
    refused(f"{path}#5", "a.pdf")


@needs_pdf
def test_the_rest_of_a_question_is_what_a_document_may_fill(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has 4 pages, and one question takes 3 more images"):
        read_source(str(LETTER), room=3)
    with pytest.raises(UsageError, match="100 images before"):
        read_source(str(LETTER), room=0)
    assert len(read_source(f"{LETTER}#2-4", room=3).images) == 3


def test_without_the_extra_the_error_names_it(tmp_path: Path) -> None:
    for module in ("pypdfium2", "av"):
        saved(tmp_path, b"raise ImportError", f"{module}.py")
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from mllama_cli.core.errors import MllamaError\n"
        "from mllama_cli.processing.documents import read_images\n"
        "for source in sys.argv[1:]:\n"
        "    try: read_images(source)\n"
        "    except MllamaError as error: print(error.message, error.hint)\n"
    )
    command = [sys.executable, "-c", program, str(LETTER), str(DOCUMENTS / "clip.mp4")]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [name in line for name, line in zip(("mllama-cli[pdf]", "mllama-cli[video]"), lines, strict=True)] == [
        True
    ] * 2


def test_the_pages_of_a_tiff(tmp_path: Path) -> None:
    path = tmp_path / "scan.tif"
    colours = [Image.new("RGB", (40, 30 + 10 * index), colour) for index, colour in enumerate((RED, GREEN, BLUE))]
    colours[0].save(path, save_all=True, append_images=colours[1:])
    assert [middle(image) for image in read_images(str(path))] == [RED], "the first alone, unless others are named"
    assert [middle(image) for image in read_images(f"{path}#all")] == [RED, GREEN, BLUE]
    (second,) = read_images(f"{path}#2")
    assert (second.name, open_image(second).size) == (f"{path}#2", (40, 40))
    refused(f"{path}#4", "has 3 pages")


def test_a_page_of_a_tiff_that_is_stored_on_its_side(tmp_path: Path) -> None:
    path = tmp_path / "scan.tif"
    first, second = noise(40, 30), noise(50, 20)
    exif = Image.Exif()
    exif[0x0112] = 6
    first.save(path, save_all=True, append_images=[second], exif=exif)
    with Image.open(path) as whole:
        whole.seek(0)
        expected = ImageOps.exif_transpose(whole).convert("RGB")
    assert np.array_equal(open_image(read_images(f"{path}#all")[0]), expected)


def test_frames_of_an_animation() -> None:
    path = str(DOCUMENTS / "clip.gif")
    assert len(read_images(path)) == 1
    frames = read_images(f"{path}#all")
    assert len(frames) == 8
    assert read_source(f"{path}#all").kind == "video"
    assert [frame.name for frame in read_images(f"{path}#1-2")] == [f"{path}#1", f"{path}#2"]
    three = read_source(f"{path}#all", excerpt=Excerpt(frames=3)).images
    assert np.argmax([middle(frame) for frame in three], axis=1).tolist() == [0, 1, 2]


def test_a_picture_of_one_page_is_itself(tmp_path: Path) -> None:
    data = file_of(noise(30, 20), "JPEG")
    path = saved(tmp_path, data, "photo.jpg")
    assert [image.data for image in read_images(f"{path}#all")] == [data]
    assert [image.data for image in read_images(f"{path}#1")] == [data]
    refused(f"{path}#2", "has 1 page, and no page 2")


def test_a_crop_has_the_pixels_of_the_file(tmp_path: Path) -> None:
    image = noise(300, 200)
    path = saved(tmp_path, file_of(image), "photo.png")
    (crop,) = read_images(f"{path}#100,50,80,60")
    assert crop.name == f"{path}#100,50,80,60"
    assert np.array_equal(open_image(crop), image.crop((100, 50, 180, 110)))
    assert open_image(read_images(f"{path}#290,190,80,60")[0]).size == (10, 10), "up to the edge"
    again = crop_image(crop, (10, 20, 30, 10))
    assert np.array_equal(open_image(again), image.crop((110, 70, 140, 80)))
    for outside in ("300,0,10,10", "0,200,10,10", "0,0,0,10"):
        refused(f"{path}#{outside}", "300 x 200 pixels")


def test_a_crop_of_a_photo_that_is_stored_on_its_side() -> None:
    path = Path(__file__).parents[1] / "data/sideways.jpg"
    upright = open_image(ImagePart(path.read_bytes()))
    (crop,) = read_images(f"{path}#10,20,30,40")
    assert np.array_equal(open_image(crop), upright.crop((10, 20, 40, 60)))


@pytest.mark.parametrize("frames", [0, -1, 101])
def test_a_number_of_frames_that_cannot_be(frames: int) -> None:
    with pytest.raises(UsageError, match="from 1 to 100"):
        Excerpt(frames=frames)


def test_pages_that_cannot_be() -> None:
    with pytest.raises(UsageError, match="pages must be like"):
        read_images(str(LETTER), pages="two")


@needs_pdf
def test_a_document_that_needs_much_memory_is_read_in_its_turn(tmp_path: Path) -> None:
    path = tmp_path / "large.pdf"
    path.write_bytes(pdf_of() + b"%" + bytes(200_000_000))
    assert len(read_images(str(path))) == 1
    path.write_bytes(pdf_with_picture(10_000, 10_000, zlib.compress(bytes(100_000_000), 1)))
    assert open_image(read_images(str(path))[0]).size == (1120, 560)
