"""A class for ``ray.data.Dataset.map_batches`` that captions the pictures of each batch."""

import asyncio
import contextlib
import math
import queue
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mllama_cli.captioning.destinations import Lease
from mllama_cli.captioning.listing import ImageEntry
from mllama_cli.captioning.postprocess import Postprocess
from mllama_cli.captioning.prompts import CAPTION_MAX_TOKENS, DEFAULT_PROMPT, PromptTemplate
from mllama_cli.captioning.shards.downloads import Downloads
from mllama_cli.captioning.shards.entry import Shard, ShardImage
from mllama_cli.captioning.shards.outputs import COLUMNS, Row, column_name, row_of
from mllama_cli.captioning.shards.parquet import IMAGE_COLUMNS, KEY_COLUMNS, content_of
from mllama_cli.core.caption_events import CaptionRecord
from mllama_cli.core.errors import ImageError, MllamaError, UsageError
from mllama_cli.core.events import FinishReason
from mllama_cli.core.filetypes import IMAGE_SUFFIXES
from mllama_cli.system.json_file import parse_json

if TYPE_CHECKING:
    from mllama_cli.captioning.asker import Asker

_IMAGES = (*IMAGE_COLUMNS, *(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES))
_KEYS = (*KEY_COLUMNS, "path", "__url__")
_NO_SHARD = Shard("", "", "tar")

Batch = Mapping[str, Sequence[Any]]


class Captioner:
    """Caption the pictures of batches, with one engine for each object, which Ray makes in an actor.

    A call returns the columns of a file of captions: ``key, caption, finish_reason, tokens, width, height, sha256,
    model, prompt_hash, error``. What is wrong with a picture is its ``error``, not an exception. Pictures of all calls
    at once share the engine's slots, so that the end of a batch drains nothing: let several calls run at a time.

    Example::

        ds = ray.data.read_webdataset("s3://bucket/shards/", decoder=None)
        ds = ds.map_batches(Captioner, fn_constructor_kwargs={"model": "11b"}, batch_size=32, num_gpus=1, concurrency=8)
        ds.write_parquet("s3://bucket/captions/")

    Args:
        model: as ``mllama_cli.load`` takes it.
        prompt: with ``{stem}``, ``{txt}``, ``{json.field}`` and so on; texts come from columns of these names.
        image_column: of the pictures: bytes, ``{bytes, path}`` or URLs. By default a usual name, such as that of a
            format in a webdataset, or ``bytes`` of ``read_binary_files``.
        key_column: what names a picture. By default ``key``, ``__key__`` or ``path``.
        keep: columns that are returned as they are.
        slots: pictures captioned at once; None for as many as memory allows.
        columns: the fields of captions that are JSON, which become columns.
        sampling: sampling parameters, such as ``max_tokens`` and ``grammar``; greedy by default.
        load: further arguments of ``mllama_cli.load``.
        asker: answers instead of an engine.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        prompt: str = DEFAULT_PROMPT,
        system: str = "",
        prefill: str = "",
        postprocess: Postprocess | None = None,
        image_column: str | None = None,
        key_column: str | None = None,
        keep: Sequence[str] = (),
        slots: int | None = None,
        columns: Sequence[str] | None = None,
        sampling: Mapping[str, Any] | None = None,
        load: Mapping[str, Any] | None = None,
        asker: "Asker | None" = None,
    ) -> None:
        self._image_column, self._key_column, self._keep = image_column, key_column, tuple(keep)
        self._columns = columns
        self._prompt, self._postprocess = PromptTemplate(prompt), postprocess or Postprocess()
        parameters = {"max_tokens": CAPTION_MAX_TOKENS, **(sampling or {})}
        self._asker = asker or loaded(model, parameters, system, prefill, slots, load or {})
        self._waiting: queue.SimpleQueue[_Asked] = queue.SimpleQueue()
        self._downloads = Downloads()
        self._error: BaseException | None = None
        self._asked: set[_Asked] = set()
        threading.Thread(target=self._run, name="caption", daemon=True).start()

    async def __call__(self, batch: Batch) -> dict[str, list[Any]]:
        """Return the columns of a batch's captions. Raise MllamaError if the model cannot caption any picture."""
        asked = [self._begin(entry) for entry in self._entries(batch)]
        rows = await asyncio.gather(*(asyncio.wrap_future(each.row) for each in asked))
        found = {name: [row[name] for row in rows] for name in (*COLUMNS, *map(column_name, self._columns or ()))}
        return {**found, **{name: list(batch[name]) for name in self._keep}}

    def _begin(self, entry: ShardImage) -> "_Asked":
        asked = _Asked(entry, Future())
        self._asked.add(asked)
        asked.row.add_done_callback(lambda _: self._asked.discard(asked))
        if self._error is not None:
            asked.row.set_exception(self._error)
        self._waiting.put(asked)
        return asked

    def _entries(self, batch: Batch) -> Iterator[ShardImage]:
        names = list(batch)
        image = _named(self._image_column, _IMAGES, names, several=True)
        key = _named(self._key_column, _KEYS, names)
        count = len(batch[names[0]])
        for index in range(count):
            row = {name: batch[name][index] for name in names}
            value = next((value for value in (_plain(row[name]) for name in image) if value is not None), None)
            name = str(row[key[0]])
            content = content_of(value, name, self._downloads.begin)
            texts = _texts(row) if self._prompt.reads_samples else {}
            yield ShardImage(name, name, _NO_SHARD, content, texts)

    def _run(self) -> None:
        """Caption what was asked for, until the process ends."""
        from mllama_cli.captioning.decoding import DecodingPool
        from mllama_cli.captioning.run import CaptionPipeline

        destination = _Answers(self._columns)
        pipeline = CaptionPipeline(self._asker, destination, self._prompt, self._postprocess)
        try:
            for _ in pipeline.run(self._pictures(destination), DecodingPool()):
                pass
        except BaseException as error:  # the caller that waits for a picture reports it
            self._error = error
            for asked in list(self._asked):
                with contextlib.suppress(Exception):
                    asked.row.set_exception(error)

    def _pictures(self, destination: "_Answers") -> Iterator[ImageEntry | None]:
        while True:
            try:
                asked = self._waiting.get_nowait()
            except queue.Empty:
                yield None
                continue
            destination.futures[id(asked.entry)] = asked.row
            yield asked.entry


@dataclass(eq=False)
class _Asked:
    entry: ShardImage
    row: "Future[Row]"


class _Answers:
    """A CaptionDestination that hands each row to its waiting caller."""

    def __init__(self, columns: Sequence[str] | None) -> None:
        self.columns = columns
        self.futures: dict[int, Future[Row]] = {}

    def is_done(self, entry: ImageEntry) -> bool:
        return False

    def acquire(self, entry: ImageEntry) -> Lease:
        return _FutureLease(self, entry, self.futures.pop(id(entry)))

    def existing(self, entry: ImageEntry) -> str:
        return ""

    def finish(self, *, exhausted: bool, complete: bool) -> None:
        pass


class _FutureLease:
    def __init__(self, answers: _Answers, entry: ImageEntry, row: "Future[Row]") -> None:
        self._answers, self._entry, self._row = answers, entry, row

    def write(self, record: CaptionRecord, finish_reason: FinishReason = "stop") -> str:
        self._row.set_result(row_of(self._entry.key, record, finish_reason, self._answers.columns))
        return ""

    def release(self, record: CaptionRecord | None = None) -> None:
        if record is not None:
            self._row.set_result(row_of(self._entry.key, record, None, self._answers.columns))


def loaded(
    model: str | None,
    sampling: Mapping[str, Any],
    system: str,
    prefill: str,
    slots: int | None,
    load: Mapping[str, Any],
    *,
    name: str | None = None,
) -> "Asker":
    """Return an engine with its weights in memory, as the pipeline asks it. Raise MllamaError."""
    from mllama_cli.captioning.engine_asker import EngineAsker
    from mllama_cli.core.sampling import Sampling
    from mllama_cli.engine.engine import load as load_engine

    engine = load_engine(model, vision=True, **load)
    engine.name = name or engine.name
    greedy = Sampling.from_defaults(replace(engine.generation_config, do_sample=False), **sampling)
    return EngineAsker(engine, greedy, system, slots, prefill=prefill)


def _named(asked: str | None, usual: Iterable[str], names: Sequence[str], *, several: bool = False) -> list[str]:
    found = [asked] if asked is not None else [name for name in usual if name in names]
    if not found or found[0] not in names:
        raise UsageError(
            "The batch has no such column" if asked is None else f"The batch has no column {asked!r}",
            f"It has {', '.join(names)}: give image_column and key_column.",
        )
    return found if several else found[:1]


def _plain(value: Any) -> Any:
    """Return a value without NumPy's types."""
    value = value.item() if hasattr(value, "item") and getattr(value, "shape", None) == () else value
    return None if isinstance(value, float) and math.isnan(value) else value  # what pandas has for null


def _texts(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what prompts quote: ``txt``, and ``json`` or else the other columns."""
    texts: dict[str, Any] = {"json": {name: _plain(value) for name, value in row.items()}}
    if (text := _text(row.get("txt"))) is not None:
        texts["txt"] = text
    if (about := row.get("json")) is not None:
        texts["json"] = about if isinstance(about, Mapping) else _parsed(_text(about) or "")
    return texts


def _text(value: Any) -> str | None:
    return value.decode("utf-8", "replace").strip() if isinstance(value, bytes) else value


def _parsed(text: str) -> Any:
    try:
        return parse_json(text.encode(), "json", error=ImageError)
    except MllamaError as error:
        return error
