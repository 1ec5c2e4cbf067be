"""A text input takes at most 64 MB, whatever is in it."""

import base64
from collections.abc import Callable
from pathlib import Path

import pytest

from mllama_cli.captioning.output_file import OutputFile
from mllama_cli.processing.messages import load_request
from mllama_cli.processing.tokenizer import MllamaTokenizer
from mllama_cli.quantization.journal import JOURNAL_NAME, QuantizeJournal
from mllama_cli.system.json_file import read_toml
from mllama_cli.system.locks import Lock
from mllama_cli.system.text_file import read_list, read_text
from tests.hostile.cases import Case, empty_program, run

MAX_TEXT_MEMORY = 64_000_000
LARGE = 15 * 2**20
PICTURE = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(LARGE * 3 // 4))


def messages(content: bytes, more: bytes = b"") -> bytes:
    return b'[{"role": "user", "content": "' + content + b'"' + more + b"}]"


def _count(path: Path) -> None:
    with path.open("rb") as file:
        for _ in read_list(file, "a list"):
            pass


def _resume(path: Path) -> None:
    lock = Lock.acquire_for(str(path.rename(path.with_name(JOURNAL_NAME))))
    assert lock is not None
    assert not QuantizeJournal(path.parent, {}, lock).continues


INPUTS: dict[str, tuple[bytes, Callable[[Path], object]]] = {
    "text with an emoji": (messages(b"x" * LARGE + "😀".encode()), load_request),
    "text with an escaped emoji": (messages(b"x" * LARGE + b"\\ud83d\\ude00"), load_request),
    "Japanese": (messages("日".encode() * (LARGE // 6)), load_request),
    "a picture and an emoji": (messages("😀".encode(), b', "images": ["' + PICTURE + b'"]'), load_request),
    "a prompt of emoji": ("😀".encode() * 2**20, read_text),
    "a million paths": (b"".join(b"/data/images/folder/picture-%020d.jpg\n" % i for i in range(10**6)), _count),
    "a config file of dotted keys": (b"".join(b"%x" % i + b".a" * 62 + b" = 1\n" for i in range(900)), read_toml),
    "a key of 5,000 parts": (b".".join([b"a"] * 5000) + b" = 1", read_toml),
    "a key of 5,000 parts in a table": (b"x = {" + b".".join([b"a"] * 5000) + b" = 1}", read_toml),
    "a journal of 30 MB": (b"{}\n" * 10_000_000, _resume),
    "5 million lists": (b"[" + b"[]," * 5_000_000 + b"[]]\n", lambda path: OutputFile(str(path))),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", INPUTS)
def test_memory(name: str) -> None:
    data, read = INPUTS[name]
    file = "a.csv" if "lists" in name else "a.json"
    case = Case(
        name, lambda folder: read(folder / file), prepare=lambda folder: (folder / file).write_bytes(data) and None
    )
    assert run(case, empty_program(), max_memory=MAX_TEXT_MEMORY).problem == ""


MAX_TOKENS_MEMORY = 96_000_000
"""Line breaks that just fit into the context take most."""

TEXTS = {
    "combining marks": "e" + "\u0301" * 10**6,
    "blanks": " " * 10**6,
    "line breaks": "\n" * 700_000,
    "Japanese": "日" * 10**6,
    "words": "word " * 150_000,
}


@pytest.fixture(scope="module")
def released(shared: Path) -> MllamaTokenizer:
    return MllamaTokenizer.from_pretrained(shared / "llama-3.2-11b-vision-instruct")


@pytest.mark.slow
@pytest.mark.parametrize("name", TEXTS)
def test_memory_of_the_released_tokenizer(name: str, released: MllamaTokenizer) -> None:
    case = Case(name, lambda _: released.encode_markup(TEXTS[name], max_tokens=131_072))
    assert run(case, empty_program(), max_memory=MAX_TOKENS_MEMORY).problem == ""
