"""Pictures from paths, stdin and data: URLs."""

import base64
import contextlib
import os
import threading
from io import BytesIO
from pathlib import Path
from urllib.parse import quote

import pytest

from mllama_cli.core.conversation import ImagePart
from mllama_cli.core.errors import ImageError, ImageNotFoundError, MllamaError, UsageError
from mllama_cli.processing.limits import Limits
from mllama_cli.processing.sources import decode_base64, read_image
from tests.processing.pictures import file_of, noise

PICTURE = file_of(noise())
TINY = Limits(max_bytes=10)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "holiday photo.png"
    path.write_bytes(PICTURE)
    return path


def error_of(source: str | Path, kind: type[MllamaError], **options: object) -> MllamaError:
    with pytest.raises(kind) as caught:
        read_image(source, **options)
    assert caught.value.hint
    assert "\n" not in caught.value.message
    return caught.value


@pytest.mark.parametrize("data", ["\udcff", "\ud800\udfff", "%ff\udc80", "caf\xe9"])
@pytest.mark.parametrize("form", ["data:,{}", "data:image/png;base64,{}"])
def test_a_data_url_of_any_characters_is_bytes_or_an_error(data: str, form: str) -> None:
    with contextlib.suppress(ImageError):
        assert read_image(form.format(data)).data


# Paths


def test_a_path_as_text_or_as_path(picture: Path) -> None:
    assert read_image(picture) == read_image(str(picture)) == ImagePart(PICTURE, str(picture))


def test_the_home_folder(picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(picture.parent))
    monkeypatch.setenv("USERPROFILE", str(picture.parent))
    assert read_image("~/holiday photo.png") == ImagePart(PICTURE, "~/holiday photo.png")


def test_file_urls(picture: Path) -> None:
    assert read_image(picture.as_uri()).data == PICTURE
    assert read_image(picture.as_uri().replace("file:///", "FILE://localhost/")).data == PICTURE
    assert "another machine (nas)" in error_of("file://nas/a.png", UsageError).message


def test_a_file_url_keeps_a_tilde(tmp_path: Path) -> None:
    (tmp_path / "~").mkdir()
    (tmp_path / "~" / "a.png").write_bytes(PICTURE)
    assert read_image(f"file://{quote(str(tmp_path))}/~/a.png").data == PICTURE


def test_a_name_with_a_colon_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("12:30.png").write_bytes(PICTURE)
    assert read_image("12:30.png").data == PICTURE


def test_a_path_object_is_never_stdin_nor_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("-").write_bytes(PICTURE)
    assert read_image(Path("-"), BytesIO(b"other")).data == PICTURE


def test_a_fifo_as_from_the_shell(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(PICTURE,))
    writer.start()
    assert read_image(path).data == PICTURE
    writer.join()


def test_a_fifo_without_end_is_left_at_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)

    def pour() -> None:
        with contextlib.suppress(BrokenPipeError), path.open("wb", buffering=0) as pipe:
            while True:
                pipe.write(bytes(65536))

    writer = threading.Thread(target=pour)
    writer.start()
    assert "is larger than 4 MiB" in error_of(path, ImageError, limits=Limits(max_bytes=4 << 20)).message
    writer.join(10)
    assert not writer.is_alive()


def test_a_missing_file_and_the_name_that_was_meant(picture: Path) -> None:
    wrong = picture.parent / "holyday foto.PNG"
    error = error_of(wrong, ImageNotFoundError)
    assert error.exit_code == 2
    assert error.message == f"no such picture: {wrong}"
    assert error.hint == f"Did you mean {picture}?"


def test_a_missing_file_with_nothing_near(picture: Path) -> None:
    assert error_of(picture.parent / "zzz", ImageNotFoundError).hint == "Check the path."


def test_a_missing_folder(tmp_path: Path) -> None:
    assert error_of(tmp_path / "no" / "a.png", ImageNotFoundError).hint == f"There is no folder {tmp_path / 'no'}."


def test_a_file_used_as_a_folder(picture: Path) -> None:
    assert "no such picture" in error_of(picture / "a.png", ImageNotFoundError).message


def test_a_folder(tmp_path: Path) -> None:
    error = error_of(tmp_path, ImageNotFoundError)
    assert error.message == f"{tmp_path} is a folder"
    assert error.hint == "Give a picture file."


def test_a_dangling_link(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "gone.png")
    error = error_of(tmp_path / "a.png", ImageNotFoundError)
    assert "no such picture" in error.message
    assert error.hint == "It is a link to a file that does not exist."


@pytest.mark.parametrize("name", ["~nobody-of-this-name/a.png", "x" * 5000])
def test_paths_that_cannot_exist(name: str) -> None:
    error = error_of(name, ImageNotFoundError)
    assert len(error.message) < 300


@pytest.mark.parametrize("name", ["", "  ", "a\0b.png"])
def test_what_is_no_path(name: str) -> None:
    assert "is not a path" in error_of(name, UsageError).message


def test_devices_are_not_read() -> None:
    assert "neither a file nor a pipe" in error_of("/dev/zero", ImageError).message


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read(picture: Path) -> None:
    picture.chmod(0)
    assert "cannot be read: Permission denied" in error_of(picture, ImageError).message


def test_a_file_that_fails_while_it_is_read(picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    error = error_of(picture, ImageError)
    assert error.message == f"{picture} cannot be read: Permission denied"
    assert error.exit_code == 1


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    assert "a.png is empty (0 bytes)" in error_of(tmp_path / "a.png", ImageError).message


def test_a_file_over_the_limit_is_not_even_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "big.png").open("wb") as file:
        file.truncate((256 << 20) + 1)
    monkeypatch.setattr(Path, "open", None)
    assert "big.png is larger than 256 MiB" in error_of(tmp_path / "big.png", ImageError).message


@pytest.mark.parametrize("url", ["ftp://host/a.png", "s3://bucket/a.png", "gopher://x"])
def test_other_schemes(url: str) -> None:
    error = error_of(url, UsageError)
    assert error.message == f"{url}: pictures cannot be read from {url.partition(':')[0]}:// addresses"


# stdin


def test_stdin() -> None:
    assert read_image("-", BytesIO(PICTURE)) == ImagePart(PICTURE, "stdin")


def test_the_process_s_own_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stdin:
        buffer = BytesIO(PICTURE)

    monkeypatch.setattr("sys.stdin", Stdin)
    assert read_image("-").data == PICTURE
    monkeypatch.setattr("sys.stdin", None)
    assert "no stdin" in error_of("-", UsageError).message


def test_empty_stdin() -> None:
    assert "stdin is empty" in error_of("-", ImageError, stdin=BytesIO()).message


def test_stdin_over_the_limit() -> None:
    assert "is larger than 10 bytes" in error_of("-", ImageError, stdin=BytesIO(PICTURE), limits=TINY).message


def test_stdin_from_a_terminal() -> None:
    class Terminal(BytesIO):
        def isatty(self) -> bool:
            return True

    assert "stdin is the terminal" in error_of("-", UsageError, stdin=Terminal(PICTURE)).message


# data: URLs


def test_data_urls() -> None:
    text = base64.b64encode(PICTURE).decode()
    assert read_image(f"data:image/png;base64,{text}") == ImagePart(PICTURE, "the data: URL")
    assert read_image(f"DATA:;BASE64,{text}").data == PICTURE
    assert read_image("data:image/png;charset=x;base64," + quote(text, safe="")).data == PICTURE
    assert read_image("data:image/png," + quote(PICTURE)).data == PICTURE


@pytest.mark.parametrize(
    ("url", "kind", "words"),
    [
        ("data:image/png;base64", UsageError, "no comma"),
        ("data:image/png;base64,", ImageError, "is empty"),
        ("data:,", ImageError, "is empty"),
        ("data:;base64,AAA!", ImageError, "not valid base64"),
        ("data:;base64,AAAAA", ImageError, "not valid base64"),
        ("data:;base64,äää", ImageError, "not valid base64"),
    ],
)
def test_bad_data_urls(url: str, kind: type[MllamaError], words: str) -> None:
    assert words in error_of(url, kind).message


@pytest.mark.parametrize(
    "url", ["data:;base64," + "A" * 15, "data:," + "A" * 11, "data:," + "%41" * 11, "data:," + "A" * 99]
)
def test_data_urls_over_the_limit(url: str) -> None:
    assert "is larger than 10 bytes" in error_of(url, ImageError, limits=TINY).message


def test_data_urls_at_the_limit() -> None:
    assert len(read_image("data:," + "%41" * 10, limits=TINY).data) == 10
    assert len(read_image("data:;base64," + base64.b64encode(bytes(10)).decode(), limits=TINY).data) == 10


def test_base64_in_its_usual_dialects() -> None:
    data = bytes(range(248, 256)) * 2
    plain = base64.b64encode(data).decode()
    assert decode_base64(plain, "x") == data
    assert decode_base64(plain.rstrip("="), "x") == data
    assert decode_base64(base64.urlsafe_b64encode(data).decode(), "x") == data
    assert decode_base64(base64.encodebytes(data).decode(), "x") == data
