"""Several conversations answered at once, with different lengths and numbers of images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from mllama_cli.core.conversation import Conversation
from mllama_cli.core.errors import ContextLengthError
from mllama_cli.core.events import FinishReason
from mllama_cli.engine.decoder import forward
from mllama_cli.engine.generate import TextStream
from mllama_cli.engine.sampling import Sampler, Sampling
from mllama_cli.model.cache import CrossKVCache, KVCache, LayerKV
from mllama_cli.model.visibility import image_spans

if TYPE_CHECKING:
    from mllama_cli.engine.load import Engine


@dataclass
class Reply:
    """One conversation's answer."""

    text: str = ""
    ids: tuple[int, ...] = ()
    finish_reason: FinishReason = "length"


def answer_batch(
    engine: "Engine", conversations: Sequence[Conversation], sampling: Sampling | None = None
) -> list[Reply]:
    """Answer every conversation, in order. The whole batch is held in memory at once.

    Each row has its own sampler, so a row's answer does not depend on what stands beside it.
    """
    if not conversations:
        return []
    sampling = sampling or engine.default_sampling()
    inputs = [engine.processor(conversation) for conversation in conversations]
    config, device = engine.config.text_config, engine.device
    for item in inputs:
        if len(item.ids) >= config.max_position_embeddings:
            raise ContextLengthError(
                f"A conversation of the batch is {len(item.ids)} tokens long; this model's context is "
                f"{config.max_position_embeddings}"
            )
    if any(item.images for item in inputs) and not engine.sees:
        for _ in engine.load_vision():
            pass
    encoded: dict[str, list[LayerKV]] = {}
    for item in inputs:
        for image in item.images:
            if image.digest not in encoded:
                encoded[image.digest] = engine.encode_image(image)
    cross = CrossKVCache.from_images([[encoded[image.digest] for image in item.images] for item in inputs])
    spans = [image_spans(item.ids, engine.config.image_token_index) for item in inputs]
    lengths = [len(item.ids) for item in inputs]
    padded = [list(item.ids) + [config.pad_token_id] * (max(lengths) - len(item.ids)) for item in inputs]

    cache = KVCache(config, len(inputs), dtype=engine.dtype, device=device)
    logits = forward(engine.network, torch.tensor(padded, device=device), cache, cross, spans, lengths)
    samplers = [Sampler(sampling, logits.shape[-1], item.ids, logits.device) for item in inputs]
    texts = [TextStream(engine.processor.tokenizer, sampling.stop) for _ in inputs]
    replies = [Reply() for _ in inputs]
    open_rows = set(range(len(inputs)))
    last = [config.pad_token_id] * len(inputs)
    while True:
        for row in sorted(open_rows):
            reply, token = replies[row], samplers[row](logits[row])
            if token in engine.eos:
                reply.text, reply.finish_reason = reply.text + texts[row].finish(), "stop"
                open_rows.discard(row)
                continue
            piece, stopped = texts[row].push(token)
            reply.ids += (token,)
            reply.text += piece
            if stopped:
                reply.finish_reason = "stop_string"
                open_rows.discard(row)
            elif len(reply.ids) == min(sampling.max_tokens, config.max_position_embeddings - lengths[row]):
                reply.text += texts[row].finish()
                open_rows.discard(row)
            last[row] = token
        if not open_rows:
            return replies
        logits = forward(engine.network, torch.tensor(last, device=device)[:, None], cache, cross, spans)
