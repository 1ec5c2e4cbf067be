"""The pipeline of `mllama caption --ray`: shards are read by tasks, captioned by actors and written by tasks.

Shards are read by the readers that `mllama caption` has without Ray: Ray's own stop at the first damaged tar.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mllama_cli.captioning.shards.entry import ReadOptions, Shard
from mllama_cli.captioning.shards.packages import required
from mllama_cli.captioning.shards.reading import read_shard
from mllama_cli.captioning.shards.tar import DamagedShardError
from mllama_cli.core.errors import MllamaError
from mllama_cli.ray.captioner import READ_ERROR, Captioner, dumped

if TYPE_CHECKING:
    import numpy as np

BATCH_ROWS = 32
CALLS_AT_ONCE = 4
"""Batches that an actor captions at a time."""


def caption_on_ray(
    shards: Sequence[Shard],
    folder: str,
    options: ReadOptions,
    captioner: Mapping[str, Any],
    *,
    address: str,
    actors: int | None = None,
    progress: bool = False,
    columns: Sequence[str] | None = None,
) -> tuple[int, int]:
    """Caption what has no row in ``folder`` yet. Return how many pictures that were, and how many of them failed.

    Args:
        captioner: the arguments of ``Captioner``.
        address: "local" starts Ray on this machine, "auto" takes the cluster that it belongs to.
        actors: models at once; None for the number of GPUs.
        progress: draw Ray's own bars.

    Raises MllamaError.
    """
    ray, data = required("ray"), required("ray.data")
    from mllama_cli.ray.sink import CaptionSink, written_keys

    logging.getLogger("ray.data").setLevel(logging.WARNING)
    data.DataContext.get_current().enable_progress_bars = progress
    if not ray.is_initialized():
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level="warning")
    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), resources.get("CPU", 1)
    count = actors or max(1, gpus)
    done = ray.put(written_keys(folder))
    rows = data.from_items([{"path": each.path, "name": each.name, "form": each.form} for each in shards])
    rows = rows.repartition(len(shards)).map_batches(
        read_batch, batch_size=1, fn_kwargs={"options": options, "done": [done]}, num_cpus=0.25, batch_format="numpy"
    )
    rows = rows.map_batches(
        Captioner,
        fn_constructor_kwargs={**captioner, "keep": ("shard",), "columns": columns},
        batch_size=BATCH_ROWS,
        num_gpus=1 if gpus else 0,
        num_cpus=1 if gpus else max(0.25, (cpus - 1) / count),
        compute=data.ActorPoolStrategy(size=count, max_concurrent_calls_per_actor=2, max_tasks_in_flight_per_actor=4),
    )
    sink = CaptionSink(folder, columns)
    rows.write_datasink(sink, ray_remote_args={"num_cpus": 0.25})
    return sink.pictures, sink.failed


def read_batch(batch: Mapping[str, Any], options: ReadOptions, done: Any) -> Iterator[dict[str, list[Any]]]:
    """Yield the pictures of shards, some at a time, without those that are done."""
    import ray

    keys = ray.get(done[0])  # in a list, which Ray does not resolve: all tasks of a node read one copy
    for path, name, form in zip(batch["path"], batch["name"], batch["form"], strict=True):
        yield from _chunks(_rows(Shard(str(path), str(name), form), options, keys))


def _rows(shard: Shard, options: ReadOptions, done: "np.ndarray[Any, Any]") -> Iterator[dict[str, Any]]:
    from mllama_cli.ray.sink import is_written

    seen: set[str] = set()
    try:
        for entry in read_shard(shard, options, lambda url: url):
            if entry.key in seen or is_written(done, shard.name, entry.key):
                continue
            seen.add(entry.key)
            error = entry.content.message if isinstance(entry.content, MllamaError) else None
            yield _row(shard, entry.key, entry.content, error, entry.texts)
    except DamagedShardError as damage:
        if damage.cut and damage.cut not in seen and not is_written(done, shard.name, damage.cut):
            yield _row(shard, damage.cut, None, "is cut off here", {})


def _row(shard: Shard, key: str, content: Any, error: str | None, texts: Mapping[str, Any]) -> dict[str, Any]:
    text = texts.get("txt")
    return {
        "shard": shard.name,
        "key": key,
        "bytes": content if isinstance(content, bytes) else None,
        "url": content if isinstance(content, str) else None,
        READ_ERROR: error,
        "txt": text if isinstance(text, str) else None,
        "json": dumped(texts),
    }


def _chunks(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, list[Any]]]:
    chunk: list[dict[str, Any]] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == BATCH_ROWS:
            yield _columns(chunk)
            chunk = []
    if chunk:
        yield _columns(chunk)


def _columns(rows: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}
