"""Ray: the class for map_batches, and the pipeline of `mllama caption --ray`, also when its actors are killed."""

import asyncio
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any

import psutil
import pytest

from mllama_cli.captioning.asker import Answer, Question
from mllama_cli.captioning.shards.paths import find_shards
from mllama_cli.captioning.shards.run import ShardPlan, plan_shards
from mllama_cli.captioning.shards.store import LocalStore
from mllama_cli.captioning.shards.tally import Tally
from mllama_cli.core.caption_events import ShardsPlanned
from mllama_cli.core.config import ImageProcessorConfig
from mllama_cli.core.errors import ModelNotFoundError, TemplateError, UsageError
from mllama_cli.ray import Captioner
from mllama_cli.ray.actor import ShardWork
from mllama_cli.ray.driver import caption_on_ray
from tests.drawings import drawing
from tests.shards import make_shards

pytest.importorskip("pyarrow", reason="pyarrow is not installed (the extra peers)")


class Measuring:
    """Answers each question at once with an image's width; keeps how many it had at a time."""

    model = "measuring"
    image_config = ImageProcessorConfig(tile_size=56)
    draws_canvases = True

    def __init__(self, slots: int = 4, seconds: float = 0.0) -> None:
        self.slots, self.seconds, self.most = slots, seconds, 0

    def ask(self, questions: Iterable[Question | None], on_batch_size: Callable[[int], None]) -> Generator[Answer]:
        waiting: list[Question] = []
        for question in questions:
            waiting += [question] if question is not None else []
            self.most = max(self.most, len(waiting))
            if waiting and (question is None or len(waiting) == self.slots):
                time.sleep(self.seconds)
                done = waiting.pop(0)
                yield Answer(done.key, f"{done.prompt} {done.image.width}", 2)
        for left in waiting:
            yield Answer(left.key, f"{left.prompt} {left.image.width}", 2)


def captioned(captioner: Captioner, *batches: dict[str, Any]) -> list[dict[str, list[Any]]]:
    async def all_at_once() -> list[dict[str, list[Any]]]:
        return await asyncio.gather(*map(captioner, batches))

    return asyncio.run(all_at_once())


def test_batches_of_a_webdataset_are_captioned_together() -> None:
    asker = Measuring(slots=6, seconds=0.2)  # as a step takes time, in which others are decoded
    captioner = Captioner(asker=asker, prompt="{txt} {json.n}", keep=("label",))
    batches = [
        {
            "__key__": [f"{batch}-{row}" for row in range(3)],
            "png": [drawing(batch * 3 + row)[0] for row in range(3)],
            "txt": [b"text"] * 3,
            "json": [b'{"n": 5}'] * 3,
            "label": [batch] * 3,
        }
        for batch in range(2)
    ]
    first, second = captioned(captioner, *batches)
    assert first["key"] == ["0-0", "0-1", "0-2"]
    assert first["caption"] == [f"text 5 {width}" for width in first["width"]]
    assert (second["label"], second["error"]) == ([1, 1, 1], [None] * 3)
    assert asker.most > 3  # of both batches


def test_what_is_wrong_with_a_picture_is_a_column() -> None:
    (batch,) = captioned(
        Captioner(asker=Measuring(), prompt="?"),
        {"path": ["a", "b", "c", "d"], "bytes": [drawing(1)[0], b"text", None, b""]},
    )
    assert batch["caption"][0]
    assert batch["caption"][1:] == [None] * 3
    assert batch["error"] == [None, "is not a picture: it looks like text", "has no picture", "is empty (0 bytes)"]


def test_a_model_that_cannot_answer_fails_the_batch() -> None:
    class Failing(Measuring):
        def ask(self, questions: Iterable[Question | None], on_batch_size: Callable[[int], None]) -> Generator[Answer]:
            next(question for question in questions if question is not None)
            raise TemplateError("There is no chat template")
            yield

    captioner = Captioner(asker=Failing())
    for _ in range(2):
        with pytest.raises(TemplateError, match="no chat template"):
            captioned(captioner, {"key": ["a"], "image": [drawing(1)[0]]})


def test_a_column_that_is_not_there_is_said() -> None:
    captioner = Captioner(asker=Measuring(), image_column="photo")
    with pytest.raises(UsageError, match="no column 'photo'") as caught:
        captioned(captioner, {"key": ["a"], "image": [b""]})
    assert "key, image" in caught.value.hint


@pytest.mark.slow
def test_actors_that_are_killed_lose_and_repeat_nothing(ray: Any, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    facts = make_shards(tmp_path / "in", 8, 3, 4)
    shards, folder = find_shards([str(tmp_path / "in")]), str(tmp_path / "out")
    work = ShardWork(folder, prompt="?", asker=Measuring(seconds=0.05), workers=1)
    ended, kills = threading.Event(), 0

    def kill() -> None:
        nonlocal kills
        rng = random.Random(3)
        while not ended.wait(rng.uniform(0.2, 0.8)):
            actors = [
                child.pid
                for child in psutil.Process().children(recursive=True)
                if child.name().startswith("ray::ShardActor")
            ]
            if actors and kills < 3:
                os.kill(rng.choice(actors), signal.SIGKILL)
                kills += 1

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        half, rest = (
            tallied(caption_on_ray(plan_shards(some, LocalStore(), folder, "parquet"), work, address="local", actors=2))
            for some in (shards[:4], shards)
        )
    finally:
        ended.set()
        killer.join()
    assert kills
    assert half["shards_done"] == 4
    assert (rest["shards"], rest["shards_done"], rest["shards_done_here"]) == (11, 11, 7)
    assert half["pictures"] + half["failed"] + rest["pictures"] + rest["failed"] == len(facts)
    assert half["failed"] + rest["failed"] == 3
    assert rest["workers"].keys() == {"actor-1", "actor-2"}
    rows = [row for path in Path(folder).glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    assert sorted(row["key"] for row in rows) == sorted(facts)
    assert {row["key"] for row in rows if row["error"]} == {"bad", "lonely", "000031"}
    assert all(row["caption"] == f"? {row['width']}" for row in rows if not row["error"])
    assert sorted(path.stem for path in Path(folder).glob("*.parquet")) == sorted(shard.name for shard in shards)


def test_a_run_with_nothing_left_to_do_needs_no_cluster(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed (the extra peers)")
    work = ShardWork(str(tmp_path / "out"), asker=Measuring())
    assert list(caption_on_ray(ShardPlan(4, ()), work, address="no-such-host:1")) == [ShardsPlanned(4, 4)]


@pytest.mark.slow
def test_an_error_of_an_actor_ends_the_run(ray: Any, tmp_path: Path) -> None:
    make_shards(tmp_path / "in", 1, 0, 1)
    shards = find_shards([str(tmp_path / "in")])
    plan = plan_shards(shards, LocalStore(), str(tmp_path / "out"), "parquet")
    with pytest.raises(ModelNotFoundError, match="no-such-model"):
        list(caption_on_ray(plan, ShardWork(str(tmp_path / "out"), model="no-such-model"), address="local"))


def tallied(events: Iterable[Any]) -> dict[str, Any]:
    tally = Tally()
    for event in events:
        tally.event(event)
    return tally.fields()
