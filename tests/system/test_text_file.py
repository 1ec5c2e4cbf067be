"""Text, JSON and TOML of others: in any Unicode encoding, never endless, each failure in one line."""

import codecs
import io
import json
import os
import threading
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mllama_cli.core.errors import CheckpointError, MllamaError, UsageError
from mllama_cli.system.json_file import parse_json, read_json, read_toml
from mllama_cli.system.text_file import (
    MAX_PROMPT_BYTES,
    decode,
    read_file,
    read_limited,
    read_list,
    read_stream,
    read_text,
)

MARKS = {
    "utf-8": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}


class Endless(io.RawIOBase):
    """A stream without an end, which counts what was taken from it."""

    def __init__(self, block: bytes = b"text\n") -> None:
        self.block, self.taken = block, 0

    def read(self, size: int = -1) -> bytes:
        assert size > 0, "this would never return"
        self.taken += size
        return (self.block * (size // len(self.block) + 1))[:size]


@given(st.text(st.characters(exclude_characters="\0\ufeff", exclude_categories=["Cs"])))
def test_a_byte_order_mark_says_the_encoding_and_without_one_it_is_utf_8(text: str) -> None:
    assert decode(text.encode(), "x") == text
    for encoding, mark in MARKS.items():
        assert decode(mark + text.encode(encoding), "x") == text


@pytest.mark.parametrize(
    ("data", "encoding"),
    [(b"caf\xe9", "UTF-8"), (b"\xff\xfea", "UTF-16"), (b"\xff\xfe\x00\xd8", "UTF-16"), (b"\xff\xfe\0\0a", "UTF-32")],
)
def test_other_bytes_are_an_error_with_their_position(data: bytes, encoding: str) -> None:
    with pytest.raises(CheckpointError, match=rf"^the file is not {encoding} text \(byte \d\)$"):
        decode(data, "the file", CheckpointError)


@given(st.binary(max_size=40), st.integers(0, 40))
def test_a_stream_is_read_up_to_its_limit(data: bytes, limit: int) -> None:
    assert read_limited(io.BytesIO(data), limit) == (data if len(data) <= limit else None)


def test_an_endless_stream_is_left_at_the_limit() -> None:
    stream = Endless()
    with pytest.raises(UsageError, match="stdin is larger than 4 MiB"):
        read_stream(cast("io.BufferedReader", stream), "stdin", limit=MAX_PROMPT_BYTES)
    assert stream.taken <= MAX_PROMPT_BYTES + 1


def test_pipes_are_read_where_they_may_be_and_refused_elsewhere_without_opening_them(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(UsageError, match="is not a regular file"):
        read_file(pipe, pipes=False)
    writer = threading.Thread(target=pipe.write_bytes, args=(b"hello",))
    writer.start()
    assert read_text(pipe) == "hello"
    writer.join()


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/urandom", ".", "gone", "x" * 300, "nul\0", "half\ud800"])
@pytest.mark.parametrize("read", [read_text, read_json, read_toml])
def test_what_is_no_file_is_one_line(path: str, read: object) -> None:
    with pytest.raises(MllamaError) as caught:
        read(Path(path))  # type: ignore[operator]
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "column 2"),
        ('{"a": ' + "1" * 5000 + "}", "digits"),
        ('{"a": -' + "9" * 101 + "}", "digits"),
        ("[" * 200_000, "nested too deeply"),
        ('{"a":' * 900 + "1" + "}" * 900, "nested too deeply"),
        ("[" + "[]," * 600_000 + "1]", "more than 1,000,000 values"),
        ("[1]", "does not hold a JSON object"),
        ("", "not valid JSON"),
    ],
)
def test_json_that_would_break_a_reader_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_json(file)
    assert len(caught.value.message) < len(str(file)) + 100


@pytest.mark.parametrize("encoding", MARKS)
def test_json_and_toml_may_begin_with_a_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "file"
    file.write_bytes(MARKS[encoding] + '{"a": "é"}'.encode(encoding))
    assert read_json(file) == {"a": "é"}
    file.write_bytes(MARKS[encoding] + 'a = "é"'.encode(encoding))
    assert read_toml(file) == {"a": "é"}


@pytest.mark.parametrize(
    "text",
    [
        "x = " + "[" * 5000,
        "x = " + "1" * 5000,
        "x = 0x" + "f" * 5000,
        "x" + ".x" * 5000 + " = 1",
        "x = " + "{y = " * 3000,
    ],
)
def test_toml_that_would_break_a_reader_is_one_line(tmp_path: Path, text: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match=r"nested too deeply|digits"):
        read_toml(file)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_ordinary_json_is_what_the_json_module_reads(value: object) -> None:
    text = json.dumps(value)
    assert parse_json(text.encode(), "x") == json.loads(text)


def listed(data: bytes, **options: Any) -> list[str]:
    return list(read_list(io.BytesIO(data), "the list", **options))


def test_a_list_has_a_path_a_line_or_each_ended_by_nul() -> None:
    assert listed(b"a.png\r\n\n  b c.png") == ["a.png", "  b c.png"]
    assert listed(b"a\nb.png\0c.png\0", nul=True) == ["a\nb.png", "c.png"]
    assert listed(b"caf\xe9.png\n" + "a\u2028b.png".encode()) == ["caf\udce9.png", "a\u2028b.png"]
    assert listed("a.png\nfür.png\n".encode("utf-16")) == ["a.png", "für.png"]
    many = [f"folder/{index}.png" for index in range(200_000)]
    assert listed("\n".join(many).encode()) == many


def test_what_is_no_list_of_paths_is_refused() -> None:
    with pytest.raises(UsageError, match="not a list of paths") as raised:
        listed(b"a.png\0" * 500_000)
    assert "-0" in raised.value.hint
    with pytest.raises(UsageError, match="the list is larger than 5 bytes"):
        listed(b"a.png\n", limit=5)
    stream = Endless()
    with pytest.raises(UsageError, match="larger than 64 MiB"):
        for _ in read_list(cast(BinaryIO, stream), "stdin"):
            pass
    assert stream.taken < 66 << 20


PICTURE = "iVBORw0KGgo/+" + "A" * (5 << 20)


@pytest.mark.parametrize("text", ['日本語 \\ "é" 😀', "plain", "line\nline", "\ud800", "\u002b"])
@pytest.mark.parametrize("escaped", [False, True])
def test_large_json_is_what_the_json_module_reads(text: str, escaped: bool) -> None:
    value = [{"role": text, "images": [PICTURE]}]
    data = json.dumps(value, ensure_ascii=escaped).encode("utf-8", "replace")
    assert parse_json(data, "x") == json.loads(data)
    assert parse_json(codecs.BOM_UTF8 + data, "x") == json.loads(data)


@pytest.mark.parametrize("wide", ["😀", "\\ud83d\\ude00"])
def test_large_text_that_would_take_four_bytes_a_character_is_refused(wide: str) -> None:
    with pytest.raises(UsageError, match="larger than 4 MiB"):
        parse_json(f'["{PICTURE}{wide}"]'.encode(), "x")
    with pytest.raises(UsageError, match=r"not UTF-8 text \(byte 5242897\)"):
        parse_json(f'["{PICTURE}"]'.encode() + b"\xff", "x")


@pytest.mark.parametrize(
    "value",
    [
        f'"{"One." * 99} \\" {"a." * 99}"',
        f"'{'One.' * 99}'",
        f'"""\n{"One. " * 99}\n\\""" {"a." * 99}\n"""',
        f"'''\n{'One.' * 99}\n'''",
        f"5  # {'One.' * 99}",
        f"[{'0.5, ' * 99}]",
    ],
)
def test_dots_of_texts_comments_and_numbers_are_not_those_of_keys(value: str, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(f"a = {value}\nb.c = 1\n")
    assert read_toml(file)["b"] == {"c": 1}
    file.write_text(f"a = {value}\n{'b.' * 64}b = 1\n")
    with pytest.raises(UsageError, match="nested too deeply"):
        read_toml(file)
