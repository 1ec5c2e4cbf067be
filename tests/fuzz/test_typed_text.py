"""What users type, paste and drop: messages with paths in them, addresses of images, names of models, values."""

import io
from pathlib import Path

import pytest
from hypothesis import strategies as st

from mllama_cli.captioning.prompts import PromptTemplate
from mllama_cli.chat.dropped_paths import find_images
from mllama_cli.core.sampling import SETTABLE
from mllama_cli.core.settings import KEYS
from mllama_cli.core.text import one_line, strip_control
from mllama_cli.hub.catalog import hub_address, resolve
from mllama_cli.processing.sources import is_base64_picture, read_image
from mllama_cli.system.text_file import read_list
from tests.fuzz.conftest import Fuzz
from tests.fuzz.inputs import TEXTS

PIECES = st.sampled_from(
    [
        *(
            " ",
            "/",
            "\\",
            "'",
            '"',
            "~",
            ".",
            "..",
            ":",
            "[",
            "]",
            "@",
            "#",
            "?",
            "%",
            "%2e",
            "%00",
            "\0",
            "\n",
            ",",
            "(",
            "-",
        ),
        *(
            "file://",
            "file:",
            "http:/",
            "ftp://",
            "data:",
            "data:image/png;base64,",
            ";base64",
            "hf.co/",
            "hf:",
            "/tree/",
        ),
        *(
            ".png",
            ".jpg",
            "a",
            "a.png",
            "x" * 300,
            "me:secret",
            "localhost",
            "C:",
            "\ufffd",
            "\ud800",
            "\u202f",
            "é",
            "AM",
        ),
        *("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk", "=", "sketch", "{name}", "{", "}", "!", "$"),
    ]
)
LINES = st.lists(PIECES | TEXTS, max_size=10).map("".join)
NO_NETWORK = LINES.filter(lambda text: not text.strip().lower().startswith(("http:", "https:")))


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLLAMA_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path))


def test_a_message_with_dropped_paths(fuzz: Fuzz) -> None:
    def read(text: str) -> None:
        found = find_images(text)
        assert found.text == text or found.paths

    fuzz(read, LINES | st.text(max_size=60))


def test_an_address_of_an_image(fuzz: Fuzz) -> None:
    def read(text: str) -> None:
        is_base64_picture(text)
        read_image(text)

    fuzz(read, NO_NETWORK.filter(lambda text: text != "-"))


def test_a_name_of_a_model(fuzz: Fuzz) -> None:
    def read(text: str) -> None:
        hub_address(text)
        resolve(text)

    fuzz(read, LINES)


def test_a_value_of_a_setting(fuzz: Fuzz) -> None:
    numbers = st.sampled_from(["1e999", "-0", "nan", "inf", "9" * 5000, "0x1", "1_0", "²", "٣", " 1 ", "auto", "true"])
    keys = st.sampled_from(sorted({**KEYS, **SETTABLE}))
    fuzz(lambda key, text: {**KEYS, **SETTABLE}[key].parsed(text, key), keys, numbers | LINES | st.text(max_size=9))


def test_a_prompt_of_captions_and_a_list_of_files(fuzz: Fuzz) -> None:
    def read(text: str) -> None:
        PromptTemplate(text)
        data = text.encode("utf-8", "surrogatepass")
        list(read_list(io.BytesIO(data), "x"))
        list(read_list(io.BytesIO(data), "x", nul=True))

    fuzz(read, LINES)


def test_text_for_the_terminal(fuzz: Fuzz) -> None:
    def show(text: str) -> None:
        for shown in (one_line(text * 30), strip_control(text)):
            shown.encode()
            assert not any(character in shown for character in "\x1b\x07\x9b\0\ud800")

    fuzz(show, LINES | st.text("\x1b]0;[\x07\x9b\r\n\ud800a", max_size=40))
