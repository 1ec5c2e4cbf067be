"""One live conversation with its caches."""

import math
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing

import torch
from torch import Tensor

from mllama_cli.core.answerer import Prompt
from mllama_cli.core.conversation import ImagePart
from mllama_cli.core.errors import ContextLengthError, MllamaError
from mllama_cli.core.events import EncodingImage, Event, GenerationStats, Notice, Prefilled, ReadingPrompt, Token
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.completion import Completion
from mllama_cli.engine.device import Clock, is_out_of_memory, make_current, memory_shortage
from mllama_cli.engine.forward import DecodeInput, log_probability
from mllama_cli.engine.model import LoadedModel
from mllama_cli.engine.vision import ImageCache
from mllama_cli.model.cache import CrossKVCache
from mllama_cli.model.layers import result_of
from mllama_cli.model.visibility import ImageSpan, image_spans
from mllama_cli.processing.grammar import Constraint
from mllama_cli.processing.processor import ModelInputs


class Session:
    """Answer a growing conversation; each turn prefills only what is new and encodes only new images.

    Closing the iterator between any two events abandons an answer; the caches stay usable.
    """

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self.cache = model.new_cache()
        self.ids: list[int] = []
        self.seen_images: list[str] = []
        self.images = ImageCache(model.vision)
        self._notices: set[str] = set()

    def stream(self, prompt: Prompt, sampling: Sampling | None = None) -> Generator[Event]:
        """Yield the events of the answer to a conversation or a raw prompt, GenerationStats last.

        If a conversation ends with the assistant, the answer goes on with that text (``Prefilled``). Weights that are
        missing are loaded once the prompt is found to be in order.

        Raise ContextLengthError, TemplateError, ImageError or UsageError before the first token.
        """
        yield from self.stream_inputs(self.model.processor.prompt(prompt), sampling)

    def stream_inputs(self, inputs: ModelInputs, sampling: Sampling | None = None) -> Generator[Event]:
        """Answer a tokenized prompt like ``stream``.

        Raise MemoryShortageError when memory runs out, even halfway through an answer; the session stays usable.
        """
        model = self.model
        make_current(model.device)
        yield from (Notice(note) for note in inputs.notes if note not in self._notices)
        self._notices.update(inputs.notes)
        self._check_length(inputs.ids)
        sampling = sampling or model.default_sampling()
        constraint = model.constraint(sampling, inputs.prefill)
        load_seconds = 0.0
        if model.lacks(vision=bool(inputs.images)):
            begun = time.perf_counter()
            yield from model.load(vision=bool(inputs.images))
            load_seconds = time.perf_counter() - begun
        try:
            yield from self._answer(inputs, sampling, constraint, load_seconds)
            return
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        raise self._shortage(inputs)  # not in the handler, where the traceback still holds tensors

    def _answer(
        self, inputs: ModelInputs, sampling: Sampling, constraint: Constraint | None, load_seconds: float
    ) -> Iterator[Event]:
        model, prompt = self.model, list(inputs.ids)
        clock, begun = Clock(model.device), time.perf_counter()
        started = clock.mark()
        spans = image_spans(prompt, model.config.image_token_index)
        kept = self._keep_common_prefix(prompt, inputs.images, spans)
        # Images that no new token sees are not encoded (again).
        active = [i for i, span in enumerate(spans) if span.end is None or span.end > kept]
        yield from self._encode([inputs.images[i] for i in active])
        cross = self.images.join([[inputs.images[i].digest for i in active]])
        active_spans = [spans[i] for i in active]
        encoded = clock.mark()
        logits = yield from self._prefill(prompt, kept, cross, active_spans)
        yield from model.decoder.prepare(with_images=bool(active_spans), sampling=sampling)
        room = model.max_context - len(prompt)
        answer = Completion(model.processor.tokenizer, sampling, model.eos, room, constraint=constraint)
        start = DecodeInput(logits, self.cache, cross, active_spans, sampling, prompt, answer.budget, constraint)
        encode_seconds, first_token = 0.0, begun
        with closing(model.decoder.tokens(start)) as tokens:
            for token in tokens:
                if answer.ids:
                    self.ids.append(answer.ids[-1])  # a token is in the cache by the time the next one is there
                else:
                    encode_seconds, first_token = clock.seconds(started, encoded), time.perf_counter()
                    if inputs.prefill:
                        yield Prefilled(inputs.prefill)
                piece = answer.push(token.id)
                if token.id not in model.eos:
                    yield Token(token.id, piece, token.logprob, token.top_logprobs)
                elif piece:
                    yield Token(token.id, piece)
                if answer.finish_reason:
                    break
        assert answer.finish_reason
        yield GenerationStats(
            finish_reason=answer.finish_reason,
            prompt_tokens=len(prompt),
            cached_tokens=kept,
            images=len(inputs.images),
            completion_tokens=len(answer.ids),
            encode_seconds=encode_seconds,
            prefill_seconds=first_token - begun - encode_seconds,
            decode_seconds=time.perf_counter() - first_token,
            load_seconds=load_seconds,
        )

    def probabilities(self, prompt: Prompt, texts: Sequence[str]) -> dict[str, float]:
        """Return how likely each text is as the whole answer to a prompt, as AnswerSession says."""
        return self.probabilities_after(self.model.processor.prompt(prompt), texts)

    def probabilities_after(self, inputs: ModelInputs, texts: Sequence[str]) -> dict[str, float]:
        """Return the ``probabilities`` of texts after a tokenized prompt."""
        try:
            return self._probabilities(inputs, texts)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        raise self._shortage(inputs)

    def _probabilities(self, inputs: ModelInputs, texts: Sequence[str]) -> dict[str, float]:
        model, prompt = self.model, list(inputs.ids)
        make_current(model.device)
        self._check_length(prompt)
        for _ in model.load(vision=bool(inputs.images)) if model.lacks(vision=bool(inputs.images)) else ():
            pass
        spans = image_spans(prompt, model.config.image_token_index)
        kept = self._keep_common_prefix(prompt, inputs.images, spans)
        active = [i for i, span in enumerate(spans) if span.end is None or span.end > kept]
        for _ in self._encode([inputs.images[i] for i in active]):
            pass
        cross = self.images.join([[inputs.images[i].digest for i in active]])
        active_spans = [spans[i] for i in active]
        logits = result_of(self._prefill(prompt, kept, cross, active_spans))
        scores = []
        for text in texts:
            score = -math.inf
            if text.startswith(inputs.prefill):
                ids = model.processor.tokenizer.encode(text.removeprefix(inputs.prefill))
                score = log_probability(model.network, ids, sorted(model.eos), logits, self.cache, cross, active_spans)
                self.cache.truncate(len(prompt))
            scores.append(score)
        chances = torch.tensor(scores, dtype=torch.float64).softmax(0).tolist()
        return dict(zip(texts, chances, strict=True))

    def _shortage(self, inputs: ModelInputs) -> MllamaError:
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()
        return memory_shortage(f"a conversation of {len(inputs.ids)} tokens and its answer")

    def _check_length(self, prompt: Sequence[int]) -> None:
        limit = self.model.max_context
        if len(prompt) >= limit:
            raise ContextLengthError(
                f"The conversation is {len(prompt)} tokens long, {len(prompt) - limit + 1} more than this model can "
                f"read and still answer (its context is {limit})",
                "Shorten the text or start a new conversation.",
            )

    def _keep_common_prefix(
        self, prompt: list[int], images: tuple[ImagePart, ...], spans: tuple[ImageSpan, ...]
    ) -> int:
        """Cut the caches to the prefix shared with the new prompt; return its length.

        At least one token remains to be fed, since its logits are needed. Images must match as well as ids: all images
        have the same token.
        """
        kept = 0
        cached = self.ids[: self.cache.lengths[0]]  # fewer than ids after running out of memory
        for old, new in zip(cached, prompt[:-1], strict=False):
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
        self.images.trim(kept=digests)
        return kept

    def _encode(self, images: list[ImagePart]) -> Iterator[Event]:
        new = {image.digest: image for image in images if image.digest not in self.images}
        for number, image in enumerate(new.values(), 1):
            model, layers = self.model, self.model.vision.layers
            yield EncodingImage(number, len(new), 0, layers)
            for layer in self.images.encode_steps(image):
                if model.device.type == "cpu":  # a GPU takes no time to report, and others may wait for it
                    yield EncodingImage(number, len(new), layer, layers)

    def _prefill(
        self, prompt: list[int], kept: int, cross: CrossKVCache | None, spans: list[ImageSpan]
    ) -> Generator[Event, None, Tensor]:
        """Feed the tokens from ``kept`` on; return the last position's logits."""
        model, new = self.model, prompt[kept:]
        logits: Tensor | None = None
        yield from model.decoder.prepare_feed(len(new), with_images=bool(spans))
        yield ReadingPrompt(0, len(new))
        for done, step in model.decoder.prefill(new, self.cache, cross, spans, model.prefill_chunk):
            self.ids.extend(new[len(self.ids) - kept : done])
            logits = step
            yield ReadingPrompt(done, len(new))
        assert logits is not None
        return logits
