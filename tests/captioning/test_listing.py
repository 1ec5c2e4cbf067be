"""Which images a command line means."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mllama_cli.captioning.listing import ImageEntry, find_images, shard_of
from mllama_cli.core.errors import ImageNotFoundError, UsageError
from tests.documents import DOCUMENTS, needs_pdf
from tests.processing.pdf_files import pdf_of


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in (
        "b10.png",
        "b9.JPG",
        "a.webp",
        "notes.txt",
        ".hidden.png",
        "sub/c.png",
        "sub/deep/d.heic",
        ".git/e.png",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path


def names(*paths: str, **options: object) -> list[str]:
    return [entry.name for entry in find_images(paths, **options).entries]  # type: ignore[arg-type]


def test_a_folder_gives_its_pictures_in_natural_order(tree: Path) -> None:
    assert names(str(tree)) == ["a.webp", "b9.JPG", "b10.png"]


def test_folders_below_come_only_with_recursive(tree: Path) -> None:
    assert names(str(tree), recursive=True) == ["a.webp", "b9.JPG", "b10.png", "c.png", "d.heic"]


def test_links_that_lead_back_end(tree: Path) -> None:
    (tree / "sub" / "up").symlink_to(tree, target_is_directory=True)
    (tree / "sub" / "self").symlink_to(tree / "sub", target_is_directory=True)
    assert names(str(tree), recursive=True) == ["a.webp", "b9.JPG", "b10.png", "c.png", "d.heic"]


def test_links_in_a_circle_do_not_stop_a_folder(tree: Path) -> None:
    (tree / "c.png").symlink_to(tree / "c.png")
    assert names(str(tree)) == ["a.webp", "b9.JPG", "b10.png", "c.png"], "which then fails as one image"


def test_a_pattern_keeps_what_matches_in_folders(tree: Path) -> None:
    assert names(str(tree), pattern="b*") == ["b9.JPG", "b10.png"]
    assert names(str(tree / "a.webp"), pattern="b*") == ["a.webp"], "what is named is meant"


def test_globs_files_and_lists_each_picture_once(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    assert names("b*.png", "./b10.png", ".") == ["b10.png", "a.webp", "b9.JPG"]
    assert names("**/*.png") == ["b10.png", "c.png"]
    assert names(listed=["sub/c.png", "gone.png", "sub"]) == ["c.png", "gone.png"]


def test_in_the_folder_itself_paths_are_bare_names(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    assert [p.path for p in find_images(["."], recursive=True).entries][2:4] == ["b10.png", "sub/c.png"]


def test_what_is_not_there_is_said(tree: Path) -> None:
    with pytest.raises(ImageNotFoundError, match=r"no such picture or folder: .*nothing\.png"):
        find_images([str(tree / "nothing.png")])
    with pytest.raises(ImageNotFoundError, match="matches nothing"):
        find_images([str(tree / "*.gif")])
    (tree / "empty").mkdir()
    with pytest.raises(UsageError, match="no pictures in"):
        find_images([str(tree / "empty")])


def test_one_folder_that_cannot_be_listed_does_not_stop_the_others(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.scandir

    def refusing(path: str) -> object:
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", refusing)
    listing = find_images([str(tree)], recursive=True)
    assert [entry.name for entry in listing.entries] == ["a.webp", "b9.JPG", "b10.png", "c.png"]
    assert listing.unreadable == [(str(tree / "sub" / "deep"), "Permission denied")]


def test_shards_are_disjoint_whole_and_the_same_wherever_the_folder_lies() -> None:
    here = [ImageEntry(f"/data/{n}.png", f"{n}.png") for n in range(500)]
    there = [ImageEntry(f"/mnt/other/{n}.png", f"{n}.png") for n in range(700)]
    parts = [shard_of(here, index, 4) for index in (1, 2, 3, 4)]
    assert sorted(p.path for part in parts for p in part) == sorted(p.path for p in here)
    assert all(75 < len(part) < 175 for part in parts)
    for index, part in enumerate(parts, 1):
        assert {p.key for p in part} <= {p.key for p in shard_of(there, index, 4)}, "more files move none"


@pytest.mark.slow
def test_a_hundred_thousand_files_are_listed_in_little_memory(tmp_path: Path) -> None:
    script = (
        "import os, resource, sys\n"
        "from mllama_cli.captioning.listing import find_images\n"
        "from mllama_cli.captioning.sidecars import SidecarPaths, Sidecars\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "listing = find_images([sys.argv[1]])\n"
        "path_of = SidecarPaths(listing.entries, '.txt')\n"
        "plan = listing.plan(Sidecars(path_of).is_done)\n"
        "print(len(plan.pending), len(path_of.collided), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    for number in range(100_000):
        os.close(os.open(tmp_path / f"picture {number}.jpg", os.O_CREAT))
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    count, collided, kilobytes = map(int, done.stdout.split())
    assert (count, collided) == (100_000, 0)
    assert kilobytes < 60_000


def test_pictures_whose_names_hide_it_are_counted(tmp_path: Path) -> None:
    png, jpeg = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"
    for name, data in {
        "a.jfif": jpeg,
        "b.ICO": b"\0\0\1\0",
        "c": png,
        "d.dat": jpeg,
        "e.txt": png,
        "f.md": b"BM",
    }.items():
        (tmp_path / name).write_bytes(data)
    os.mkfifo(tmp_path / "pipe")
    listing = find_images([str(tmp_path)])
    assert [entry.name for entry in listing.entries] == ["a.jfif", "b.ICO"]
    assert sorted(listing.left_out) == [str(tmp_path / "c"), str(tmp_path / "d.dat")]
    assert find_images([str(tmp_path), str(tmp_path / "c")]).left_out == [str(tmp_path / "d.dat")]
    assert find_images([str(tmp_path)], pattern="*.jfif").left_out == []
    for name in ("a.jfif", "b.ICO"):
        (tmp_path / name).unlink()
    with pytest.raises(UsageError) as caught:
        find_images([str(tmp_path)])
    assert "is one by its content" in caught.value.hint


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "b.pdf").write_bytes(pdf_of(2))
    (tmp_path / "c.PDF").write_bytes(pdf_of(11))
    (tmp_path / "locked.pdf").write_bytes((DOCUMENTS / "encrypted.pdf").read_bytes())
    return tmp_path


@needs_pdf
def test_documents_that_are_named_give_their_pages(scans: Path) -> None:
    listing = find_images([str(scans / "b.pdf")])
    assert [(entry.path, entry.key, entry.page, entry.file) for entry in listing.entries] == [
        (f"{scans}/b.pdf#{page}", f"b.pdf#{page}", page, f"{scans}/b.pdf") for page in (1, 2)
    ]
    assert names(f"{scans}/c.PDF#10-") == ["c.PDF#10", "c.PDF#11"]
    assert names(f"{scans}/*.pdf#2", f"{scans}/b.pdf#1-2") == ["b.pdf#2", "locked.pdf#1", "b.pdf#1"]
    listed = find_images([], listed=[f"{scans}/b.pdf", f"{scans}/b.pdf#9", f"{scans}/nope.pdf"])
    assert [entry.name for entry in listed.entries] == ["b.pdf#1", "b.pdf#2", "nope.pdf"]
    assert [path for path, _ in listed.unreadable] == [f"{scans}/b.pdf#9"]


@needs_pdf
def test_documents_in_folders_are_left_out_unless_a_pattern_names_them(scans: Path) -> None:
    listing = find_images([str(scans)])
    assert [entry.name for entry in listing.entries] == ["a.png"]
    assert sorted(listing.documents) == [f"{scans}/{name}" for name in ("b.pdf", "c.PDF", "locked.pdf")]
    assert names(str(scans), pattern="b.pdf") == ["b.pdf#1", "b.pdf#2"]
    (scans / "a.png").unlink()
    with pytest.raises(UsageError) as caught:
        find_images([str(scans)])
    assert "--glob '*.pdf'" in caught.value.hint


@needs_pdf
def test_pages_that_are_not_there_and_files_without_pages(scans: Path) -> None:
    with pytest.raises(UsageError, match="no page 3"):
        names(f"{scans}/b.pdf#3")
    with pytest.raises(UsageError, match="not a PDF document"):
        names(f"{scans}/a.png#1")
    (scans / "a.png#1").write_bytes(b"x")
    assert names(f"{scans}/a.png#1") == ["a.png#1"]
