"""Choose the prompts to read next, and read long ones in parts, so that the answers of others go on."""

import math
import time
from collections.abc import Generator

from torch import Tensor

from mllama_cli.core.events import ReadingPrompt
from mllama_cli.engine.batch.admission import Admission
from mllama_cli.engine.batch.capacity import max_prefill_batch
from mllama_cli.engine.batch.prefill import Prompt, PromptReader
from mllama_cli.engine.batch.request import Request
from mllama_cli.engine.cuda.pass_shapes import PASS_TOKENS
from mllama_cli.engine.forward import MAX_PREFILL_BATCH, PREFILL_CHUNK
from mllama_cli.engine.model import LoadedModel

SLICE_TOKENS = {"cpu": 64, "cuda": 128}
"""Prompt tokens between two steps of answers that somebody watches, or as many layers of more tokens as take as long.

Whole chunks keep a GPU busier, and cost the host less, than short ones would.
"""

LAYER_TOKENS = {"cpu": 1, "cuda": 400}
"""A layer counts as at least so many tokens: a GPU computes them while the host launches the layer."""

GROUP_TOKENS = {"cpu": 128, "cuda": PASS_TOKENS[-1]}
"""Tokens of several short prompts read together while somebody watches answers: what a captured graph reads."""

HELD_STEPS_A_SLOT = {"cpu": 0.0, "cuda": 1 / 16}
"""Steps for which prompts are held, while nobody watches answers, until more can be read together with them.

A GPU reads all weights for one short prompt as for several. Of few slots, one that is idle costs more.
"""

LACKING_FOR_HELD_PROMPT = {"cpu": math.inf, "cuda": 5}
"""Requests that must lack an image for each prompt that is held while somebody watches answers.

Reading a prompt together with another saves about an eighth of the time that an image takes, for all that wait.
"""

Read = tuple[list[Prompt], Tensor]
"""Prompts that are in their caches, and their last logits [prompts, vocab_size]."""


class Reading:
    """The prompts of admitted requests, read in the order in which their images are encoded."""

    def __init__(self, model: LoadedModel, admission: Admission, reader: PromptReader) -> None:
        self._model, self._admission, self._reader = model, admission, reader
        self._prompt: Prompt | None = None
        """A long prompt that is read between steps, by ``_steps``."""
        self._steps: Generator[int, None, Tensor] | None = None
        self._long_turn = True
        self._held_steps = 0
        self.has_read = False
        """Whether the last ``advance`` has given the device something to read."""

    def prepare(self) -> bool:
        """Do a part of what later prompts would have to do first; return whether there was any."""
        return self._reader.prepare()

    def forget(self, request: Request | None = None) -> None:
        """Stop reading the prompt of a request, or any."""
        if self._prompt is not None and request in (None, self._prompt.request):
            self._prompt = self._steps = None

    def advance(self, slots: int, busy: int, *, watched: bool) -> Read | None:
        """Read a slice of a long prompt or all of several short ones, in turn; return what is done.

        ``busy`` of the ``slots`` are in use, and ``watched`` says that somebody watches their answers.
        """
        self._long_turn = not self._long_turn
        self.has_read = True
        tokens = GROUP_TOKENS[self._model.device.type] if watched else PREFILL_CHUNK
        if self._prompt is not None and (self._long_turn or not self._ready(slots, busy, tokens)):
            return self._read_slice(self._prompt, watched)
        prompts = self._ready(slots, busy, tokens)
        if not prompts or self._holds(prompts, slots, busy, tokens, watched=watched):
            self.has_read = False
            return None
        self._held_steps = 0
        at_once = self._prompt is not None or self._reader.reads_at_once(prompts)
        if not at_once:
            self._admission.reuse(prompts[0].request)
            prompts = [Prompt(prompts[0].request)]
        now = time.perf_counter()
        for prompt in prompts:
            prompt.request.encoded = now
            prompt.request.report(ReadingPrompt(0, len(prompt.new)))
        if at_once:
            return prompts, self._reader.read_together(prompts, self._admission.images)
        (self._prompt,) = prompts
        self._steps = self._prompt.read(self._model, self._admission.images, self._model.prefill_chunk)
        return self._read_slice(self._prompt, watched)

    def _ready(self, slots: int, busy: int, tokens: int) -> list[Prompt]:
        """Return the first prompt whose images are there, and those that fit into one pass of ``tokens`` with it."""
        free = slots - busy - (self._prompt is not None)
        most = min(free, self._most_together(slots))
        prompts: list[Prompt] = []
        for request in self._admission.admitted:
            if len(prompts) == most:
                break
            if (self._prompt is not None and self._prompt.request is request) or not self._admission.ready(request):
                continue
            prompt = Prompt(request)
            if prompts and not self._reader.fits([*prompts, prompt], tokens):
                break
            if self._prompt is not None and len(prompt.new) > tokens:
                continue  # one long prompt at a time
            prompts.append(prompt)
        return prompts

    def _most_together(self, slots: int) -> int:
        return max_prefill_batch(slots) if self._model.device.type == "cuda" else MAX_PREFILL_BATCH

    def _holds(self, prompts: list[Prompt], slots: int, busy: int, tokens: int, *, watched: bool) -> bool:
        """Return whether to wait for another prompt that can be read together with these."""
        longest = max(prompts, key=lambda prompt: len(prompt.new))
        if len(prompts) == self._most_together(slots) or not self._reader.fits([*prompts, longest], tokens):
            return False
        others = len(self._admission.admitted) - self._admission.lacking - len(prompts)
        if others or self._prompt is not None or not busy:
            return False
        device = self._model.device.type
        if watched:  # a question that waited for no image is not delayed by those of others
            waited = all(prompt.request.new_images for prompt in prompts)
            return waited and self._admission.lacking >= LACKING_FOR_HELD_PROMPT[device] * len(prompts)
        self._held_steps += 1
        return self._held_steps <= HELD_STEPS_A_SLOT[device] * slots

    def _read_slice(self, prompt: Prompt, watched: bool) -> Read | None:
        """Read a chunk of a prompt or, if somebody watches other answers, some layers of it."""
        assert self._steps is not None
        tokens, before, logits = 0, prompt.fed, None
        device = self._model.device.type
        most = SLICE_TOKENS[device] * self._model.config.text_config.num_hidden_layers
        while prompt.fed == before and not (watched and tokens >= most):
            try:
                tokens += max(next(self._steps), LAYER_TOKENS[device])
            except StopIteration as end:
                self._prompt = self._steps = None
                logits = end.value
                break
        if prompt.fed > before:
            done = prompt.fed - prompt.request.cached
            prompt.request.report(ReadingPrompt(done, len(prompt.request.ids) - prompt.request.cached))
        return None if logits is None else ([prompt], logits)
