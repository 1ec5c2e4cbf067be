"""How the server reads images: base64 and data: URLs always, public URLs where allowed, files never."""

import base64
from pathlib import Path

import pytest

from mllama_cli.core.errors import DownloadError, ImageError, UsageError
from mllama_cli.processing.decoding import Decoder
from mllama_cli.processing.documents import read_images
from mllama_cli.serving.images import SlowError, image_reader
from mllama_cli.serving.settings import ServerSettings
from tests.documents import DOCUMENTS, needs_pdf
from tests.processing.pdf_files import pdf_of
from tests.processing.server import serving

DATA = Path(__file__).parents[1] / "data"
PNG, JPEG = ((DATA / name).read_bytes() for name in ("drawing.png", "sideways.jpg"))
DECODER = Decoder(1)
CLOSED = image_reader(ServerSettings(), DECODER)
OPEN = image_reader(ServerSettings(allow_image_urls=True), DECODER)


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.mark.parametrize("data", [PNG, JPEG])  # the base64 of a JPEG begins with a slash, as a path does
def test_base64_with_and_without_a_header(data: bytes) -> None:
    text = encoded(data)
    for source in (text, f" {text}\n", f"data:image/png;base64,{text}", f"DATA:;base64,{text}", text.rstrip("=")):
        assert [image.data for image in CLOSED(source)] == [data]


@pytest.mark.parametrize("reader", [CLOSED, OPEN])
@pytest.mark.parametrize(
    "source",
    ["", "-", "drawing.png", str(DATA / "drawing.png"), f"file://{DATA}/drawing.png", "~/x.png", "../x.png",
     "C:\\x.png", "ftp://example.com/x.png", "gopher://x", "\0"],
)  # fmt: skip
def test_no_file_and_no_other_scheme_is_opened(reader: object, source: str) -> None:
    assert callable(reader)
    with pytest.raises(UsageError, match="does not open files"):
        reader(source)


def test_a_path_object_is_no_way_in_either() -> None:
    with pytest.raises(UsageError, match="does not open files"):
        CLOSED(DATA / "drawing.png")


def test_urls_are_refused_unless_allowed() -> None:
    with pytest.raises(UsageError, match="--allow-image-urls"):
        CLOSED("https://example.com/x.png")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "0.0.0.0", "[::ffff:127.0.0.1]"])
def test_allowed_urls_never_reach_this_machine(host: str) -> None:
    with serving(PNG) as server:
        with pytest.raises((UsageError, DownloadError)):
            OPEN(f"HTTP://{host}:{server.server_port}/picture.png")
        assert server.requests == []


def test_an_image_over_the_limit_of_a_body_is_refused() -> None:
    small = image_reader(ServerSettings(max_body=len(PNG) - 1), DECODER)
    for source in (encoded(PNG), f"data:image/png;base64,{encoded(PNG)}"):
        with pytest.raises(ImageError, match="larger than"):
            small(source)


def test_the_downloads_of_a_request_share_a_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mllama_cli.serving.images.FETCH_SECONDS", 0.0)
    with pytest.raises(DownloadError, match="not there after 0 s"):
        image_reader(ServerSettings(allow_image_urls=True), DECODER)("https://example.com/x.png")


@needs_pdf
def test_pages_of_a_document() -> None:
    data = (DOCUMENTS / "letter.pdf").read_bytes()
    expected = read_images(str(DOCUMENTS / "letter.pdf"))
    url = f"data:application/pdf;base64,{encoded(data)}"
    for source, images in ((url, expected), (encoded(data), expected), (f"{url}#2-3", expected[1:3])):
        assert [image.data for image in CLOSED(source)] == [image.data for image in images]
    assert (
        CLOSED(f"data:image/png;base64,{encoded(PNG)}#1,2,3,4")[0].data
        == read_images(f"{DATA}/drawing.png#1,2,3,4")[0].data
    )


@needs_pdf
def test_the_documents_of_a_request_share_its_room() -> None:
    reader = image_reader(ServerSettings(), DECODER)
    pages = encoded(pdf_of(60))
    assert len(reader(pages)) == 60
    with pytest.raises(UsageError, match="has 60 pages, and one question takes 40 more images"):
        reader(pages)
    with pytest.raises(UsageError, match="has 101 pages"):
        image_reader(ServerSettings(), DECODER)(encoded(pdf_of(101)))


@needs_pdf
def test_what_is_slow_is_left_to_threads_that_may_wait() -> None:
    quick = image_reader(ServerSettings(), DECODER, slow=False)
    assert quick(encoded(PNG))[0].data == PNG
    for source in (encoded(pdf_of()), f"data:;base64,{encoded(PNG)}#1,2,3,4"):
        with pytest.raises(SlowError):
            quick(source)
