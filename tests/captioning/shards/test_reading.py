"""Tars and parquet files as the pictures in them."""

import io
import tarfile
from concurrent.futures import Future
from pathlib import Path

import pytest

from mllama_cli.captioning.shards.entry import ReadOptions, Shard, ShardImage
from mllama_cli.captioning.shards.reading import ReadItem, ShardBegun, ShardRead, ShardUnreadable, read_shards
from mllama_cli.captioning.shards.webdataset import MAX_TEXT_BYTES
from mllama_cli.core.conversation import ImagePart
from mllama_cli.core.errors import MllamaError
from tests.shards import write_tar

PNG = b"\x89PNG\r\n\x1a\n"


def read(path: Path, **options: object) -> list[ReadItem | None]:
    form = "parquet" if path.suffix == ".parquet" else "tar"
    return list(read_shards([Shard(str(path), "s", form)], ReadOptions(**options)))  # type: ignore[arg-type]


def pictures(items: list[ReadItem | None]) -> list[ShardImage]:
    assert isinstance(items[0], ShardBegun)
    return [item for item in items if isinstance(item, ShardImage)]


def damage(items: list[ReadItem | None]) -> str:
    end = items[-1]
    assert isinstance(end, ShardRead)
    return end.damage


@pytest.mark.parametrize("name", ["s.tar", "s.tar.gz"])
def test_neighbours_that_differ_in_their_extension_are_a_sample(tmp_path: Path, name: str) -> None:
    long = "x" * 150
    members = {
        "a/1.txt": b"one",
        "a/1.PNG": PNG + b"1",
        "a/1.json": b'{"n": {"m": 5}, "none": null}',
        "a/1.seg.png": b"no picture of its own",
        f"{long}.jpg": PNG + b"2",
        "ü.jpg": PNG + b"3",
        "README": b"no sample",
    }
    items = read(write_tar(tmp_path / name, members), texts=True)
    first, second, third, readme = pictures(items)
    assert [each.key for each in (first, second, third)] == ["a/1", long, "ü"]
    assert first.read().data == PNG + b"1"
    assert second.read().data == PNG + b"2"
    assert (first.variable("txt"), first.variable("json.n.m"), first.variable("json.none")) == ("one", "5", "")
    assert (first.name, first.stem, first.folder) == ("1.PNG", "1", f"{tmp_path}/{name}/a")
    with pytest.raises(MllamaError, match=r"has no json.o"):
        first.variable("json.o")
    with pytest.raises(MllamaError, match="has no picture"):
        readme.read()
    assert damage(items) == ""


def test_the_extension_of_the_pictures_can_be_named(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", {"a.jpg": b"photo", "a.seg.png": b"mask"})
    (entry,) = pictures(read(path, image_column="seg.png"))
    assert entry.read().data == b"mask"


def test_texts_are_read_only_where_prompts_quote_them_and_bounded(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", {"a.txt": b"x" * (MAX_TEXT_BYTES + 1), "a.json": b"{", "a.png": PNG})
    (entry,) = pictures(read(path))
    assert entry.texts == {}
    (entry,) = pictures(read(path, texts=True))
    with pytest.raises(MllamaError, match="too long for a prompt"):
        entry.variable("txt")
    with pytest.raises(MllamaError, match="not valid JSON"):
        entry.variable("json.a")


@pytest.mark.parametrize(
    ("blocks", "keys", "cut"),
    [(2, ["a"], False), (2.5, ["a"], False), (3.1, ["a", "b"], True), (5, ["a", "b"], False), (6.5, ["a", "b"], False)],
)
def test_a_tar_that_is_cut_off_gives_what_precedes(tmp_path: Path, blocks: float, keys: list[str], cut: bool) -> None:
    path = write_tar(tmp_path / "s.tar", {"a.png": PNG, "b.png": PNG * 100, "b.txt": b"text"})
    path.write_bytes(path.read_bytes()[: int(blocks * 512)])
    items = read(path)
    assert [entry.key for entry in pictures(items)] == keys
    assert "is cut off" in damage(items)
    if cut:
        with pytest.raises(MllamaError, match="is cut off here"):
            pictures(items)[-1].read()
    else:
        assert pictures(items)[-1].read().data.startswith(PNG)


def test_a_compressed_tar_that_is_cut_off_says_so(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar.gz", {f"{number}.png": bytes(range(256)) * number for number in range(9)})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "cut off" in damage(read(path))


def test_headers_cannot_claim_what_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    for kind, size in ((tarfile.XHDTYPE, 1 << 40), (tarfile.GNUTYPE_LONGNAME, 1 << 40), (tarfile.GNUTYPE_SPARSE, 0)):
        header = tarfile.TarInfo("a.png")
        header.type, header.size = kind, size
        path.write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
        items = read(path)
        assert pictures(items) == []
        assert damage(items)
    path.write_bytes(io.BytesIO(b"no tar " * 1000).getvalue())
    assert "damaged" in damage(read(path))


def test_a_file_that_is_gone_is_left_to_another_run(tmp_path: Path) -> None:
    (end,) = read(tmp_path / "gone.tar")[1:]
    assert isinstance(end, ShardUnreadable)
    assert "no such file" in end.error.message


def write_parquet(path: Path, columns: dict[str, list[object]]) -> Path:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path)
    return path


def test_pictures_of_parquet_are_bytes_or_structs(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "s.parquet", {"jpg": [PNG, b"", None], "n": [1, 2, 3]})
    first, second, third = pictures(read(path, texts=True))
    assert [first.key, second.key] == ["s/0", "s/1"]
    assert (first.read().data, first.variable("json.n")) == (PNG, "1")
    for entry, reason in ((second, "is empty"), (third, "has no picture")):
        with pytest.raises(MllamaError, match=reason):
            entry.read()
    images = [{"bytes": PNG, "path": "x.png"}, {"bytes": None, "path": "gone.png"}]
    path = write_parquet(tmp_path / "s.parquet", {"image": images, "id": ["a", "b"]})
    first, second = pictures(read(path, key_column="id"))
    assert (first.key, first.read().data) == ("a", PNG)
    with pytest.raises(MllamaError, match="neither a picture's bytes nor a URL"):
        second.read()


def test_urls_of_parquet_are_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mllama_cli.captioning.shards.reading.fetch_image", lambda url: ImagePart(url.encode(), url))
    path = write_parquet(tmp_path / "s.parquet", {"url": ["https://a.test/1.png", "https://a.test/2.png"]})
    items = pictures(read(path))
    assert isinstance(items[0].content, Future)
    assert [entry.read().data for entry in items] == [b"https://a.test/1.png", b"https://a.test/2.png"]


def test_a_column_that_is_not_there_or_a_damaged_file_is_said(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "s.parquet", {"pixels": [PNG], "name": ["a"]})
    for options, reason in (
        ({}, "no column that is called like pictures"),
        ({"image_column": "pixel"}, "no column 'pixel'"),
        ({"image_column": "pixels", "key_column": "x"}, "no column 'x'"),
    ):
        (_, end) = read(path, **options)
        assert isinstance(end, ShardUnreadable)
        assert reason in end.error.message
        assert "pixels, name" in end.error.hint
    path.write_bytes(path.read_bytes()[:-9])
    assert "damaged" in damage(read(path))
