"""A worker that shares shards with others by claims, as `mllama caption --to --claim`, with a model from a table."""

import sys
import time
from collections.abc import Iterator

from mllama_cli.captioning.asker import Answer, Question
from mllama_cli.captioning.decoding import DecodingPool
from mllama_cli.captioning.postprocess import Postprocess
from mllama_cli.captioning.prompts import PromptTemplate
from mllama_cli.captioning.shards import claims
from mllama_cli.captioning.shards.destination import ShardDestination
from mllama_cli.captioning.shards.entry import ReadOptions
from mllama_cli.captioning.shards.paths import find_shards
from mllama_cli.captioning.shards.run import caption_shards, plan_shards
from mllama_cli.captioning.shards.stores import store_of
from tests.captioning.shards.test_run import Reader


class Slow(Reader):
    def _answers(self, batch: list[Question]) -> Iterator[Answer]:
        time.sleep(0.02)
        return super()._answers(batch)


def main(source: str, folder: str) -> None:
    """Caption what others leave of the shards at ``source`` into ``folder``."""
    claims.RENEW_SECONDS, claims.STALE_SECONDS, claims.LIST_SECONDS = 0.2, 1.0, 0.5
    store = store_of(folder)
    plan = plan_shards(find_shards([source]), store, folder, "parquet")
    with claims.Claims(store, folder, plan.pending, ".parquet", claims.worker_name()) as shared:
        destination = ShardDestination(store, folder, "parquet", released=shared.release)
        prompt, options = PromptTemplate("How wide?"), ReadOptions()
        list(
            caption_shards(
                plan, shared.take(), Slow(), destination, prompt, Postprocess(), options, pool=DecodingPool(1)
            )
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
