"""Files that a caption run adds to: whatever is in them, no line of the user's is lost."""

import csv
import io
import itertools
import json
from pathlib import Path

import pytest
from hypothesis import strategies as st

from mllama_cli.captioning.journal import CaptionJournal
from mllama_cli.captioning.listing import ImageEntry
from mllama_cli.captioning.output_file import OutputFile
from mllama_cli.captioning.records import COLUMNS, encode, header, is_cut_record
from mllama_cli.captioning.sidecars import Sidecars
from mllama_cli.core.caption_events import CaptionRecord
from mllama_cli.core.errors import MllamaError
from tests.fuzz.conftest import Fuzz
from tests.fuzz.inputs import SCALARS, TEXTS, damaged

DONE = CaptionRecord("a.png", 'two "lines"\nof, it', 4, 3, 2, 0.1, "m", "p", "s")
FAILED = CaptionRecord("b.png", "", 0, 0, 0, 0.0, "m", "p", "", error="no")
JSON_LINES = encode(DONE, "jsonl") + encode(FAILED, "jsonl") + encode(DONE, "jsonl")
CSV = header("csv") + encode(DONE, "csv") + encode(FAILED, "csv")
CHANGED_LINES = st.dictionaries(st.sampled_from(COLUMNS) | TEXTS, SCALARS).map(lambda v: json.dumps(v).encode() + b"\n")


def csv_lines(rows: list[list[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8", "replace")


CHANGED_ROWS = st.lists(st.lists(TEXTS | st.sampled_from(COLUMNS), max_size=4), max_size=3).map(csv_lines)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_a_file_of_captions(form: str, overwrite: bool, fuzz: Fuzz, tmp_path: Path) -> None:
    path = tmp_path / f"c.{form}"

    def resume(data: bytes) -> None:
        path.write_bytes(data)
        try:
            output = OutputFile(str(path), overwrite=overwrite, run="0123456789")
        except MllamaError:
            assert path.read_bytes() == data
            raise
        output.is_done(ImageEntry("a.png", "a.png"))
        output.add(DONE)
        output.finish(exhausted=True, complete=True)
        lines = [line for line in data.splitlines(keepends=True) if line.endswith(b"\n") and b'"no"' not in line]
        if form == "jsonl" and not overwrite:
            assert path.read_bytes().startswith(b"".join(lines[:1]))

    whole = JSON_LINES if form == "jsonl" else CSV
    resume(whole)
    resume(whole[:-5])
    fuzz(
        resume, damaged([whole, b"[" * 5000, b"9" * 5000 + b"\n", b'"' + b"x" * 200_000]) | CHANGED_LINES | CHANGED_ROWS
    )


def test_the_rest_of_a_line(fuzz: Fuzz) -> None:
    fuzz(is_cut_record, damaged([JSON_LINES, b'{"path": ' + b"[" * 5000, b'{"path": "a", "caption": ' + b"9" * 5000]))


@pytest.mark.parametrize("existing", ["append", "prepend"])
def test_a_caption_that_is_added_to(existing: str, fuzz: Fuzz, tmp_path: Path) -> None:
    caption = tmp_path / "a.txt"
    entry = ImageEntry(str(tmp_path / "a.png"), "a.png")
    Path(entry.path).write_bytes(b"x")

    runs = itertools.count()

    def add(data: bytes) -> None:
        caption.write_bytes(data)
        journal = CaptionJournal(str(next(runs)), tmp_path / "captions.db")
        destination = Sidecars(lambda _: str(caption), existing=existing, journal=journal)  # type: ignore[arg-type]
        try:
            destination.existing(entry)
            lease = destination.acquire(entry)
            lease.write(DONE)
            lease.release()
        except MllamaError:
            assert caption.read_bytes() == data
            raise
        finally:
            destination.finish(exhausted=True, complete=False)
        assert data.strip() in caption.read_bytes() or data.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff"))

    samples = ["x é\n".encode(), "\ufeffx é".encode("utf-16"), b"caf\xe9", b""]
    fuzz(add, damaged(samples))
