"""`mllama caption` page by page."""

import json
import shutil
from operator import itemgetter
from pathlib import Path

import pytest

from tests.cli.caption.folders import DATA, names
from tests.console import run_here
from tests.documents import DOCUMENTS, needs_pdf, pdf_of_pictures

pytestmark = needs_pdf


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    folder.mkdir()
    pdf_of_pictures(folder / "scan.pdf", DATA / "drawing.png", DATA / "card.png")
    return folder


def test_each_page_has_a_caption_file_and_is_captioned_once(scans: Path) -> None:
    result = run_here("caption", str(scans / "scan.pdf"), "--workers", "0")
    assert (result.code, result.out) == (0, "")
    assert names(scans) == ["scan.p1.txt", "scan.p2.txt", "scan.pdf"]
    assert (scans / "scan.p1.txt").read_text() == "I see 3 red circles, a blue square and a yellow star.\n"
    assert "HELLO" in (scans / "scan.p2.txt").read_text()
    assert "Captioned 0, skipped 2" in run_here("caption", str(scans / "scan.pdf"), "--workers", "0").err


def test_names_that_would_collide(scans: Path) -> None:
    shutil.copy(DATA / "card.png", scans / "scan.p1.png")
    run_here("caption", str(scans / "scan.pdf"), str(scans), "--workers", "0")
    assert names(scans) == ["scan.p1.png", "scan.p1.png.txt", "scan.p2.txt", "scan.pdf", "scan.pdf.p1.txt"]


def test_one_page_is_printed_and_records_name_their_page(scans: Path) -> None:
    path = scans / "scan.pdf"
    result = run_here("caption", f"{path}#1", "-p", "How many circles are there?")
    assert (result.code, result.out, result.err) == (0, "There are 3 circles.\n", "")
    output = scans / "captions.jsonl"
    assert run_here("caption", str(path), "--output", str(output), "-p", "{name} {stem}", "--workers", "0").code == 0
    records = sorted(map(json.loads, output.read_text().splitlines()), key=itemgetter("path"))  # as answers end
    assert [record["path"] for record in records] == [f"{path}#1", f"{path}#2"]
    assert [record["prompt"] for record in records] == ["scan.pdf#1 scan", "scan.pdf#2 scan"]
    assert len({record["sha256"] for record in records}) == 2


def test_a_document_that_cannot_be_opened_fails_alone(scans: Path) -> None:
    shutil.copy(DOCUMENTS / "encrypted.pdf", scans / "locked.pdf")
    (scans / "broken.pdf").write_bytes(b"%PDF-1.7 no more")
    result = run_here("caption", str(scans), "--glob", "*.pdf", "--workers", "0")
    assert result.code == 3
    assert "Captioned 2, failed 2" in result.err
    assert "locked.pdf is encrypted" in result.err
    assert "broken.pdf is a PDF document that is damaged" in result.err


def test_documents_that_are_left_out_are_named(scans: Path) -> None:
    shutil.copy(DATA / "card.png", scans / "card.png")
    result = run_here("caption", str(scans), "--workers", "0")
    assert f"Left out {scans}/scan.pdf: PDF documents." in result.err
    assert names(scans) == ["card.png", "card.txt", "scan.pdf"]
