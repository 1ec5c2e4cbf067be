"""Tars and parquet files as the pictures in them."""

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from PIL import Image

from mllama_cli.captioning.shards import parquet, parquet_worker, tar
from mllama_cli.captioning.shards.entry import ReadOptions, Shard, ShardImage
from mllama_cli.captioning.shards.reading import ReadItem, ShardBegun, ShardRead, ShardUnreadable, read_shards
from mllama_cli.captioning.shards.webdataset import MAX_TEXT_BYTES
from mllama_cli.core.errors import MllamaError
from mllama_cli.processing import public_hosts
from tests.hostile.shards import TARS
from tests.processing.pictures import file_of, noise
from tests.processing.server import serving
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


def test_a_sample_keeps_its_first_picture_and_a_name_its_length(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", [("a.png", PNG + b"1"), ("a.jpg", PNG + b"2"), ("a.png", PNG + b"3")])
    (entry,) = pictures(read(path))
    assert (entry.read().data, entry.name) == (PNG + b"1", "a.png")
    path = write_tar(tmp_path / "s.tar", {"a.png": PNG, "x" * 5000 + ".png": PNG})
    items = read(path)
    assert [entry.key for entry in pictures(items)] == ["a"]
    assert "a name has 5,004 characters" in damage(items)


@pytest.mark.parametrize("hostile", ["a size of -1", "an extended header of length 0", "an extended size of 10^18"])
def test_a_header_that_lies_ends_the_tar(tmp_path: Path, hostile: str) -> None:
    path = tmp_path / "s.tar"
    path.write_bytes(TARS[hostile]())
    assert damage(read(path))


def test_a_shard_does_not_unpack_to_many_times_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = write_tar(tmp_path / "s.tar.gz", {f"{number}.png": bytes(100_000) for number in range(20)})
    repeated = write_parquet(tmp_path / "s.parquet", {"image": [PNG + bytes(100_000)] * 200})
    for path in (packed, repeated):
        assert damage(read(path)) == ""
    monkeypatch.setattr(tar, "FREE_BYTES", 10**6)
    for path in (packed, repeated):
        items = read(path)
        assert "unpacks to more than 50 times its size" in damage(items)
        assert 5 < len(pictures(items)) < 190
    nulls = write_parquet(tmp_path / "s.parquet", {"image": [b"", *[None] * 100_000]})
    assert "more rows than bytes" in damage(read(nulls))


def test_a_parquet_file_that_crashes_or_stops_its_reader_fails_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_parquet(tmp_path / "s.parquet", {"image": [PNG]})
    script = tmp_path / "reader.py"
    monkeypatch.setattr(parquet_worker, "__file__", str(script))
    script.write_text("import os; os.abort()")
    assert damage(read(path)) == "is damaged: it crashes its reader"
    monkeypatch.setattr(parquet, "MAX_PICTURE_SECONDS", 0.1)
    script.write_text("import time; time.sleep(600)")
    assert damage(read(path)) == "is damaged: it takes longer than 0.1 seconds"


def test_long_keys_and_texts_are_refused(tmp_path: Path) -> None:
    columns = {"key": ["k" * 5000, "b"], "image": [PNG, PNG], "txt": ["a", "t" * 2_000_000]}
    first, second = pictures(read(write_parquet(tmp_path / "s.parquet", columns), texts=True))
    assert (first.key, second.key) == ("s/0", "b")
    with pytest.raises(MllamaError, match="a key of more than 4,096"):
        first.read()
    with pytest.raises(MllamaError, match="too long for a prompt"):
        second.variable("json.txt")
    assert second.read().data == PNG


def test_a_file_that_is_gone_is_left_to_another_run(tmp_path: Path) -> None:
    (end,) = read(tmp_path / "gone.tar")[1:]
    assert isinstance(end, ShardUnreadable)
    assert "no such file" in end.error.message


def write_parquet(path: Path, columns: Mapping[str, Sequence[object]]) -> Path:
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


def test_urls_of_parquet_are_downloaded_from_public_addresses_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = file_of(Image.effect_noise((2400, 2400), 90))
    assert len(large) > 4 * 2**20  # more than what is fetched ahead
    with serving(file_of(noise())) as small, serving(large) as second:
        urls = [f"{small.url}/picture", f"{second.url}/picture", f"{small.url}/elsewhere?http://10.0.0.1/picture"]
        urls += [f"{small.url}/status/404", f"{small.url}/page", "ftp://a.test/x.png", f"{small.url}/{'x' * 9000}"]
        path = write_parquet(tmp_path / "s.parquet", {"url": urls})
        assert "not public" in " ".join(reasons(pictures(read(path))))
        assert small.requests == second.requests == []
        monkeypatch.setattr(public_hosts, "is_public", lambda address: address == "127.0.0.1")
        first, other, *failing = pictures(read(path))
        assert (first.read().data, other.read().data) == (file_of(noise()), large)
        assert other.read() is other.read()  # is not fetched again
        expected = ("10.0.0.1 has an address that is not public", "answered 404", "a web page", "nor a URL", "9,0")
        for reason, part in zip(reasons(failing), expected, strict=True):
            assert part in reason


def reasons(entries: list[ShardImage]) -> list[str]:
    """Return why each of the pictures cannot be read."""
    found = []
    for entry in entries:
        with pytest.raises(MllamaError) as caught:
            entry.read()
        found.append(caught.value.message)
    return found


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
