"""Let clients know that the engine is alive while it has nothing to say."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress

from mllama_cli.remote.events import HEARTBEAT

HEARTBEAT_SECONDS = 5.0


async def with_heartbeats(chunks: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """Yield what ``chunks`` yields, and a heartbeat whenever it has been silent for a while."""
    async with aclosing(chunks):
        while True:
            chunk = asyncio.ensure_future(anext(chunks))
            try:
                while not (await asyncio.wait([chunk], timeout=HEARTBEAT_SECONDS))[0]:
                    yield HEARTBEAT
                yield chunk.result()
            except StopAsyncIteration:
                return
            finally:
                if not chunk.done():
                    chunk.cancel()
                    with suppress(asyncio.CancelledError, StopAsyncIteration):
                        await chunk
