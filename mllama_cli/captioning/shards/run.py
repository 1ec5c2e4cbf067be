"""Caption shards: the pictures of several flow through one pipeline, so that the end of one drains nothing."""

from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass

from mllama_cli.captioning.asker import Asker
from mllama_cli.captioning.decoding import DecodingPool
from mllama_cli.captioning.postprocess import Postprocess
from mllama_cli.captioning.prompts import PromptTemplate
from mllama_cli.captioning.run import CaptionPipeline
from mllama_cli.captioning.shards.destination import ShardDestination
from mllama_cli.captioning.shards.entry import ReadOptions, Shard
from mllama_cli.captioning.shards.outputs import SUFFIXES, OutputForm
from mllama_cli.captioning.shards.read_ahead import ReadAhead
from mllama_cli.captioning.shards.reading import ReadItem, item_bytes, read_shards
from mllama_cli.captioning.shards.store import Store
from mllama_cli.core.caption_events import CaptionEvent, ShardEvent, ShardsPlanned


@dataclass(frozen=True)
class ShardPlan:
    """A run's shards; ``pending`` have no output yet."""

    total: int
    pending: Sequence[Shard]


def plan_shards(shards: Sequence[Shard], store: Store, folder: str, form: OutputForm) -> ShardPlan:
    """Return which shards have no output yet."""
    done = set(store.names(folder))
    return ShardPlan(len(shards), [shard for shard in shards if shard.name + SUFFIXES[form] not in done])


def caption_shards(
    plan: ShardPlan,
    taken: Iterable[Shard | None],
    asker: Asker,
    destination: ShardDestination,
    prompt: PromptTemplate,
    postprocess: Postprocess,
    options: ReadOptions,
    *,
    pool: DecodingPool,
) -> Generator[CaptionEvent | ShardEvent]:
    """Yield ShardsPlanned first, then an event for each picture and each shard.

    Args:
        taken: the shards that this worker captions; None in it means that the next one is not free yet.
        pool: decodes the pictures; it is closed at the end.

    Raises:
        StoreError: captions cannot be written.
        TemplateError, DeviceError, ...: the model cannot caption any picture.
    """
    pipeline = CaptionPipeline(asker, destination, prompt, postprocess)
    yield ShardsPlanned(plan.total, plan.total - len(plan.pending))
    try:
        with ReadAhead[ReadItem](read_shards(taken, options), item_bytes) as ahead:
            events = pipeline.run(destination.follow(ahead.items()), pool)
            with closing(events):
                for event in events:
                    yield from destination.events()
                    yield event
    finally:
        destination.finish(exhausted=True, complete=not pipeline.failures)
    yield from destination.events()
