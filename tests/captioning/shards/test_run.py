"""Shards through the pipeline, with a model that answers from a table."""

import json
import os
import tarfile
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from mllama_cli.captioning.asker import Answer, Question
from mllama_cli.captioning.decoding import DecodingPool
from mllama_cli.captioning.postprocess import Postprocess
from mllama_cli.captioning.prompts import PromptTemplate
from mllama_cli.captioning.shards.destination import ShardDestination
from mllama_cli.captioning.shards.entry import ReadOptions, Shard, ShardForm
from mllama_cli.captioning.shards.outputs import OutputForm
from mllama_cli.captioning.shards.paths import find_shards
from mllama_cli.captioning.shards.run import ShardPlan, caption_shards, plan_shards
from mllama_cli.captioning.shards.store import LocalStore
from mllama_cli.core.caption_events import CaptionSkipped, ShardDone, ShardFailed, ShardsPlanned
from mllama_cli.core.config import ImageProcessorConfig
from tests.drawings import drawing
from tests.shards import make_shards, sample, write_tar

pq = pytest.importorskip("pyarrow.parquet")


MOST_IDLE = 10
"""How often a batch waits for another question."""


class Reader:
    """Answers with what it was asked and an image's width, the last question of each batch first."""

    model = "reader"
    image_config = ImageProcessorConfig(tile_size=56)
    draws_canvases = True

    def __init__(self, batch: int = 4) -> None:
        self.batch = batch
        self.waits = 0
        self.shards_at_once = 0

    def ask(self, questions: Iterable[Question | None], on_batch_size: Callable[[int], None]) -> Generator[Answer]:
        on_batch_size(self.batch)
        batch: list[Question] = []
        idle = 0
        for question in questions:
            self.waits += question is None
            idle = idle + 1 if question is None else 0
            if question is not None:
                batch.append(question)
            if len(batch) == self.batch or idle > MOST_IDLE:  # others may wait for these answers
                yield from self._answers(batch)
                batch = []
        yield from self._answers(batch)

    def _answers(self, batch: list[Question]) -> Iterator[Answer]:
        self.shards_at_once = max(self.shards_at_once, len({each.image.name.rpartition("/")[0] for each in batch}))
        for question in reversed(batch):
            yield Answer(question.key, f"{question.prompt} {question.image.width}", 3, 0.5)


def run(
    shards: list[Shard],
    to: Path,
    *,
    form: OutputForm = "parquet",
    prompt: str = "How wide?",
    reader: Reader | None = None,
    taken: Iterable[Shard | None] | None = None,
    columns: tuple[str, ...] | None = None,
) -> list[Any]:
    store = LocalStore()
    plan = plan_shards(shards, store, str(to), form)
    template = PromptTemplate(prompt)
    return list(
        caption_shards(
            plan,
            plan.pending if taken is None else taken,
            reader or Reader(),
            ShardDestination(store, str(to), form, columns),
            template,
            Postprocess(),
            ReadOptions(texts=template.reads_samples),
            pool=DecodingPool(0),
        )
    )


def rows(to: Path) -> dict[str, list[dict[str, Any]]]:
    return {path.stem: pq.read_table(path).to_pylist() for path in sorted(to.glob("*.parquet"))}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Shard]:
    folder = tmp_path_factory.mktemp("shards")
    make_shards(folder, 5, 1, 3)
    return find_shards([str(folder)])


def test_each_key_has_one_row_in_order_and_bad_members_an_error(shards: list[Shard], tmp_path: Path) -> None:
    reader = Reader()
    plan, *events = run(shards, tmp_path / "out", reader=reader)
    assert plan == ShardsPlanned(6, 0)
    assert reader.shards_at_once > 1
    found = rows(tmp_path / "out")
    assert {name: [row["key"] for row in found[name]] for name in found} == {
        "00000": ["000000", "000001", "000002"],
        "00001": ["000003", "000004", "000005", "bad"],
        "00002": ["000006", "000007", "000008", "lonely"],
        "00003": ["000009", "000010", "000011"],
        "00004": ["000012", "000013", "000014"],
        "p0": ["p0-0", "p0-1", "p0-2"],
    }
    first, *_ = found["00000"]
    assert first["caption"] == f"How wide? {first['width']}"
    assert (first["finish_reason"], first["tokens"], first["model"], first["error"]) == ("stop", 3, "reader", None)
    assert len(first["sha256"]) == 64
    assert len(first["prompt_hash"]) == 16
    errors = {row["key"]: row["error"] for each in found.values() for row in each if row["error"]}
    assert errors == {
        "bad": "is not a picture: it looks like a web page (HTML)",
        "lonely": "has no picture",
        "000014": "is cut off here",
    }
    assert all(row["caption"] is None for each in found.values() for row in each if row["error"])
    done = [event for event in events if isinstance(event, ShardDone)]
    assert len(done) == 6
    assert [Path(event.path).name for event in done if event.damage] == ["00004.tar"]
    assert [event.reason for event in events if isinstance(event, CaptionSkipped)] == [
        "its key 000006 is in the shard twice"
    ]
    about = json.loads(pq.ParquetFile(tmp_path / "out" / "00004.parquet").metadata.metadata[b"mllama"])
    assert (about["pictures"], about["failed"], about["damage"]) == (3, 1, "is cut off")


def test_a_second_run_does_only_what_is_missing_and_gives_the_same_bytes(shards: list[Shard], tmp_path: Path) -> None:
    run(shards, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.parquet")}
    (tmp_path / "00002.parquet").unlink()
    plan, *events = run(shards, tmp_path)
    assert plan == ShardsPlanned(6, 5)
    assert [Path(event.output).name for event in events if isinstance(event, ShardDone)] == ["00002.parquet"]
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.parquet")} == before
    assert not [path.name for path in tmp_path.iterdir() if path.suffix != ".parquet"]


def test_an_output_that_appeared_meanwhile_is_kept(shards: list[Shard], tmp_path: Path) -> None:
    def taken() -> Iterator[Shard]:
        (tmp_path / "00000.parquet").write_bytes(b"another's")
        yield shards[0]

    events = run(shards[:1], tmp_path, taken=taken())
    assert [event.is_new for event in events if isinstance(event, ShardDone)] == [False]
    assert (tmp_path / "00000.parquet").read_bytes() == b"another's"


def test_pictures_are_answered_while_the_next_shard_is_not_free(shards: list[Shard], tmp_path: Path) -> None:
    answered = threading.Event()

    def taken() -> Iterator[Shard | None]:
        yield shards[0]
        while not answered.is_set():
            yield None
            time.sleep(0.01)
        yield shards[1]

    class Waiting(Reader):
        def _answers(self, batch: list[Question]) -> Iterator[Answer]:
            answered.set()
            return super()._answers(batch)

    reader = Waiting(batch=3)
    run(shards[:2], tmp_path, taken=taken(), reader=reader)
    assert reader.waits
    assert sorted(rows(tmp_path)) == ["00000", "00001"]


def test_prompts_quote_samples(tmp_path: Path) -> None:
    write_tar(tmp_path / "s.tar", {**sample(1), "x.png": drawing(2)[0]})
    run(find_shards([str(tmp_path)]), tmp_path / "out", prompt="{stem}: {txt}, {json.caption}{json.url}")
    first, second = rows(tmp_path / "out")["s"]
    assert first["caption"] == f"000001: drawing 1, drawing 1 {first['width']}"
    assert second["error"] == "has no txt, which the prompt quotes"


def test_a_webdataset_has_the_captions_beside_the_pictures(shards: list[Shard], tmp_path: Path) -> None:
    run(shards, tmp_path, form="webdataset")
    with tarfile.open(tmp_path / "00001.tar") as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    assert list(members)[:3] == ["000003.png", "000003.txt", "000003.json"]
    assert members["000003.png"] == drawing(3)[0]
    row = json.loads(members["000003.json"])
    assert members["000003.txt"].decode() == row["caption"]
    assert "bad.txt" not in members
    assert json.loads(members["bad.json"])["error"]
    with tarfile.open(tmp_path / "p0.tar") as tar:
        assert tar.getnames()[0] == "p0-0.png"


def test_fields_of_json_captions_are_columns(shards: list[Shard], tmp_path: Path) -> None:
    class Form(Reader):
        def _answers(self, batch: list[Question]) -> Iterator[Answer]:
            for question in batch:
                yield Answer(question.key, json.dumps({"n": [1], "key": "k"}), 3)

    run(shards[:1], tmp_path, reader=Form(), columns=("n", "key", "gone"))
    (first, *_) = rows(tmp_path)["00000"]
    assert (first["n"], first["fields.key"], first["gone"], first["key"]) == ("[1]", "k", None, "000000")


def test_a_shard_that_cannot_be_read_leaves_no_output(shards: list[Shard], tmp_path: Path) -> None:
    events = run([Shard(str(tmp_path / "gone.tar"), "gone", "tar"), shards[0]], tmp_path / "out")
    assert [Path(event.path).name for event in events if isinstance(event, ShardFailed)] == ["gone.tar"]
    assert list(rows(tmp_path / "out")) == ["00000"]


def test_an_empty_shard_has_an_empty_output(tmp_path: Path) -> None:
    write_tar(tmp_path / "s.tar", {})
    run(find_shards([str(tmp_path)]), tmp_path / "out")
    assert rows(tmp_path / "out") == {"s": []}


def test_a_run_that_is_closed_leaves_whole_outputs_only(shards: list[Shard], tmp_path: Path) -> None:
    store = LocalStore()
    events = caption_shards(
        ShardPlan(len(shards), shards), shards, Reader(1), ShardDestination(store, str(tmp_path), "parquet"),
        PromptTemplate("?"), Postprocess(), ReadOptions(), pool=DecodingPool(0),
    )  # fmt: skip
    for event in events:
        if isinstance(event, ShardDone):
            break
    events.close()
    found = rows(tmp_path)
    assert 1 <= len(found) < 6
    assert len(found["00000"]) == 3


def test_memory_stays_flat_over_shards(tmp_path: Path) -> None:
    """The pipeline holds on to no picture, and to a bounded number of answers and keys."""
    import gc

    from mllama_cli.captioning.shards.entry import ShardImage

    data = drawing(1)[0]
    for number in range(3):
        write_tar(tmp_path / f"{number}.tar", {f"{number}-{each}.png": data for each in range(40)})
    most = batches = 0

    class Counting(Reader):
        def _answers(self, batch: list[Question]) -> Iterator[Answer]:
            nonlocal most, batches
            if batches % 5 == 4:  # to look at all objects takes long
                most = max(most, sum(type(each) is ShardImage for each in gc.get_objects()))
            batches += 1
            return super()._answers(batch)

    run(find_shards([str(tmp_path)]), tmp_path / "out", reader=Counting(), prompt="{stem}")
    assert 0 < most < 100  # what is read ahead, of 120


@pytest.mark.parametrize("form", ["tar", "parquet"])
def test_the_memory_of_a_worker_does_not_grow_with_the_shards(tmp_path: Path, form: ShardForm) -> None:
    import pyarrow as pa

    process, sizes = psutil.Process(), list[int]()

    def taken() -> Iterator[Shard]:
        for number in range(SHARDS):
            pictures = {f"{number}-{each}": drawing(1)[0] + os.urandom(600_000) for each in range(10)}
            path = tmp_path / f"{number}.{form}"
            if form == "tar":
                write_tar(path, {f"{key}.png": data for key, data in pictures.items()})
            else:
                pq.write_table(pa.table({"key": list(pictures), "image": list(pictures.values())}), path)
            sizes.append(process.memory_info().rss)
            yield Shard(str(path), str(number), form)
            (tmp_path / f"{number - 2}.{form}").unlink(missing_ok=True)

    events = run([], tmp_path / "out", taken=taken())
    assert sum(isinstance(event, ShardDone) and event.pictures == 10 for event in events) == SHARDS
    growth = max(sizes[SHARDS // 3 :]) - max(sizes[: SHARDS // 3])
    assert growth < 30_000_000  # of 72 MB that were read meanwhile


SHARDS = 18
