"""Read prompts into their caches: one in slices, or several short ones in one pass."""

from collections.abc import Generator, Sequence

import torch
from torch import Tensor

from mllama_cli.engine.batch.request import Request
from mllama_cli.engine.forward import PREFILL_CHUNK, forward, forward_steps
from mllama_cli.engine.model import LoadedModel
from mllama_cli.engine.vision import ImageCache
from mllama_cli.kernels.ops import upload
from mllama_cli.model.cache import CrossKVCache
from mllama_cli.model.visibility import ImageSpan

PREPARED_TOKENS = 80


class Prompt:
    """A request's prompt from the first token on that no cache held.

    ``spans`` and ``images`` are those that these tokens see.
    """

    def __init__(self, request: Request) -> None:
        assert request.caches is not None
        self.request, self.cache = request, request.caches.cache
        visible = visible_images(request)
        self.spans: list[ImageSpan] = [request.spans[index] for index in visible]
        self.images = [request.digests[index] for index in visible]
        self._cross: CrossKVCache | None = None

    @property
    def fed(self) -> int:
        """Prompt tokens that are in the cache."""
        return self.cache.lengths[0]

    @property
    def new(self) -> tuple[int, ...]:
        return self.request.ids[self.fed :]

    def cross(self, images: ImageCache) -> CrossKVCache | None:
        """Return the images' keys and values, joined once."""
        if self._cross is None:
            self._cross = images.join([self.images])
        return self._cross

    def read(self, model: LoadedModel, images: ImageCache, chunk: int) -> Generator[int, None, Tensor]:
        """Feed up to ``chunk`` tokens at a time, yielding their number after each layer; return the last logits."""
        while True:
            ids = self.new[:chunk]
            fed = upload(torch.tensor([ids]), model.device)
            layers = forward_steps(model.network, fed, self.cache, self.cross(images), [self.spans])
            logits: Tensor = yield from _each(layers, len(ids))
            if not self.new:
                return logits


def _each(steps: Generator[None, None, Tensor], value: int) -> Generator[int, None, Tensor]:
    """Yield ``value`` for each step."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: Tensor = end.value
            return result
        yield value


class PromptReader:
    """Read several prompts in one pass."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self._prepared = model.device.type != "cuda"

    def prepare(self) -> bool:
        """Do a part of what later prompts would have to do first; return whether there was any."""
        if self._prepared:
            return False
        chunk = self.model.prefill_chunk
        for counts in ([PREPARED_TOKENS, 5], [PREPARED_TOKENS], [chunk]):  # builds kernels, if they are new here
            cache = self.model.new_cache(len(counts))
            ids = torch.zeros(len(counts), counts[0], dtype=torch.long, device=self.model.device)
            forward(self.model.network, ids, cache, None, [[]] * len(counts), counts)
        self._prepared = True
        return True

    def reads_at_once(self, prompts: Sequence[Prompt]) -> bool:
        """Return whether these take less time together than a slice of a long prompt."""
        return len(prompts) > 1

    def fits(self, prompts: Sequence[Prompt], most: int) -> bool:
        """Return whether these prompts have at most ``most`` tokens, so that they are read together."""
        return fits_together([len(prompt.new) for prompt in prompts], most)

    def read_together(self, prompts: Sequence[Prompt], images: ImageCache) -> Tensor:
        """Feed all of several prompts, padded to the longest; return their last logits [prompts, vocab_size]."""
        model = self.model
        kept, new = [prompt.fed for prompt in prompts], [prompt.new for prompt in prompts]
        longest = max(map(len, new))
        batch = model.new_cache(len(prompts))
        batch.reserve(max(kept) + longest)
        for row, prompt in enumerate(prompts):
            batch.copy_from(prompt.cache, 0, prompt.fed, to_row=row)
        pad = model.config.text_config.pad_token_id
        ids = upload(torch.tensor([[*each, *[pad] * (longest - len(each))] for each in new]), model.device)
        cross = images.join([prompt.images for prompt in prompts])
        logits = forward(model.network, ids, batch, cross, [prompt.spans for prompt in prompts], list(map(len, new)))
        for row, prompt in enumerate(prompts):
            prompt.cache.copy_from(batch, row, len(prompt.request.ids))
        return logits


def visible_images(request: Request) -> list[int]:
    """Return the indices of the images that the prompt's new tokens see; others are not encoded (again)."""
    return [index for index, span in enumerate(request.spans) if span.end is None or span.end > request.cached]


def fits_together(lengths: Sequence[int], most: int = PREFILL_CHUNK) -> bool:
    """Return whether prompts of these lengths, padded to the longest, have at most ``most`` tokens."""
    return len(lengths) * max(lengths, default=0) <= most
