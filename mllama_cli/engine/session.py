"""One live conversation with its caches."""

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mllama_cli.core.conversation import Conversation, ImagePart
from mllama_cli.core.errors import ContextLengthError, UsageError
from mllama_cli.core.events import EncodingImage, Event, FinishReason, GenerationStats, Notice, ReadingPrompt, Token
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.clock import Clock
from mllama_cli.engine.completion import TextStream
from mllama_cli.engine.device import is_out_of_memory, make_current, memory_shortage
from mllama_cli.engine.forward import DecodeInput, prefill
from mllama_cli.model.cache import CrossKVCache, KVCache, LayerKV
from mllama_cli.model.visibility import ImageSpan, image_spans
from mllama_cli.processing.processor import ModelInputs

if TYPE_CHECKING:
    from mllama_cli.engine.engine import Engine


@dataclass
class _Timer:
    """Seconds since the last call."""

    last: float

    def lap(self) -> float:
        now = time.perf_counter()
        passed, self.last = now - self.last, now
        return passed


class Session:
    """Answers a growing conversation. Only what is new since the last answer is prefilled; images are encoded once.

    A reply can be abandoned between any two events (close the iterator): the caches stay usable.
    """

    def __init__(self, engine: "Engine") -> None:
        self.engine = engine
        config = engine.config.text_config
        self.cache = KVCache(config, dtype=engine.dtype, device=engine.device)
        self.ids: list[int] = []
        self.seen_images: list[str] = []
        self.encoded: dict[str, list[LayerKV]] = {}
        self._said: set[str] = set()

    def stream(self, conversation: Conversation, sampling: Sampling | None = None) -> Iterator[Event]:
        """Events of the answer to a conversation that ends with the user; GenerationStats comes last.

        Raises ContextLengthError, TemplateError, ImageError or UsageError before the first token.
        """
        if not conversation.messages or conversation.messages[-1].role != "user":
            raise UsageError("The last message must be the user's", "Add a question to answer.")
        yield from self.stream_inputs(self.engine.processor(conversation), sampling)

    def stream_inputs(self, inputs: ModelInputs, sampling: Sampling | None = None) -> Iterator[Event]:
        """As ``stream``, for a prompt that is already made (``MllamaProcessor.raw`` for base models).

        Raises MemoryShortageError where memory runs out, also in the middle of an answer; the session can be used on.
        """
        try:
            yield from self._answer(inputs, sampling)
            return
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Not in the handler, where the traceback still holds tensors.
        if self.engine.device.type == "cuda":
            torch.cuda.empty_cache()
        raise memory_shortage(f"a conversation of {len(inputs.ids)} tokens and its answer")

    def _answer(self, inputs: ModelInputs, sampling: Sampling | None) -> Iterator[Event]:
        make_current(self.engine.device)
        sampling = sampling or self.engine.default_sampling()
        yield from (Notice(note) for note in inputs.notes if note not in self._said)
        self._said.update(inputs.notes)
        limit = self.engine.config.text_config.max_position_embeddings
        prompt = list(inputs.ids)
        if len(prompt) >= limit:
            raise ContextLengthError(
                f"The conversation is {len(prompt)} tokens long, {len(prompt) - limit + 1} more than this model can "
                f"read and still answer (its context is {limit})",
                "Shorten the text or start a new conversation.",
            )
        timer = _Timer(time.perf_counter())
        clock = Clock(self.engine.device)
        load_seconds = 0.0
        if inputs.images and not self.engine.sees:
            yield from self.engine.load_vision()
            load_seconds = timer.lap()
        started = clock.mark()
        spans = image_spans(prompt, self.engine.config.image_token_index)
        kept = self._keep_common_prefix(prompt, inputs.images, spans)
        # Images that no new row sees are not encoded (again).
        active = [i for i, span in enumerate(spans) if span.end is None or span.end > kept]
        yield from self._encode([inputs.images[i] for i in active])
        cross = CrossKVCache.from_images([[self.encoded[inputs.images[i].digest] for i in active]])
        active_spans = [spans[i] for i in active]
        encoded = clock.mark()

        logits: Tensor | None = None
        new = prompt[kept:]
        yield ReadingPrompt(0, len(new))
        engine, rows = self.engine, self.engine.prefill_rows
        for done, step in prefill(engine.network, new, self.cache, cross, active_spans, engine.device, rows):
            self.ids.extend(new[len(self.ids) - kept : done])
            logits = step
            yield ReadingPrompt(done, len(new))
        assert logits is not None
        text = TextStream(self.engine.processor.tokenizer, sampling.stop)
        budget = min(sampling.max_tokens, limit - len(prompt))
        yield from self.engine.prepare_decoding(sees=bool(active_spans), sampling=sampling)
        tokens = self.engine.decode(DecodeInput(logits, self.cache, cross, active_spans, sampling, prompt, budget))
        reason: FinishReason = "length"
        count = last = 0
        encode_seconds = prefill_seconds = 0.0
        with closing(tokens):
            for token in tokens:
                if count == 0:
                    encode_seconds = clock.seconds(started, encoded)
                    prefill_seconds = timer.lap() - encode_seconds
                else:
                    self.ids.append(last)  # a token is in the cache by the time the next one is there
                last = token.id
                if token.id in self.engine.eos:
                    reason = "stop"
                    break
                count += 1
                piece, stopped = text.push(token.id)
                if stopped:
                    reason = "stop_string"
                    yield Token(token.id, piece, token.logprob, token.top_logprobs)
                    break
                piece = piece + text.finish() if count == budget else piece
                yield Token(token.id, piece, token.logprob, token.top_logprobs)
        if reason == "stop" and (rest := text.finish()):
            yield Token(last, rest)
        yield GenerationStats(
            finish_reason=reason,
            prompt_tokens=len(prompt),
            cached_tokens=kept,
            images=len(inputs.images),
            completion_tokens=count,
            encode_seconds=encode_seconds,
            prefill_seconds=prefill_seconds,
            decode_seconds=timer.lap(),
            load_seconds=load_seconds,
        )

    def _keep_common_prefix(
        self, prompt: list[int], images: tuple[ImagePart, ...], spans: tuple[ImageSpan, ...]
    ) -> int:
        """Cut the caches to the part that the new prompt begins with; returns its length.

        At least one token is left to feed, since its logits are needed. Ids and images must agree: the same image token
        may now stand for another picture.
        """
        kept = 0
        remembered = self.ids[: self.cache.lengths[0]]  # what a shortage of memory has left
        for old, new in zip(remembered, prompt[:-1], strict=False):
            if old != new:
                break
            kept += 1
        digests = [image.digest for image in images]
        for index, span in enumerate(spans):
            if span.start < kept and self.seen_images[index : index + 1] != digests[index : index + 1]:
                kept = span.start
        del self.ids[kept:]
        self.cache.truncate(kept)
        self.seen_images = digests
        self.encoded = {digest: kv for digest, kv in self.encoded.items() if digest in digests}
        return kept

    def _encode(self, images: list[ImagePart]) -> Iterator[Event]:
        new = {image.digest: image for image in images if image.digest not in self.encoded}
        for number, (digest, image) in enumerate(new.items(), 1):
            layers = self.engine.vision_layers
            yield EncodingImage(number, len(new), 0, layers)
            steps = self.engine.encode_image_steps(image)
            while True:
                try:
                    layer = next(steps)
                except StopIteration as end:
                    self.encoded[digest] = end.value
                    break
                if self.engine.device.type == "cpu":
                    yield EncodingImage(number, len(new), layer, layers)
