"""Choose the next token from logits: one sampler for CPUs, for the rows of a batch on a GPU, and for captured steps.

The result depends only on seed, logits and draw number: draw n of a request uses uniform n of its own CPU generator,
and every operation works row by row.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from mllama_cli.core.errors import MllamaError
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.logits import Adjustments, Settings, Survivors, draw, log_probabilities
from mllama_cli.kernels.ops import best_allowed, best_ids, masked, upload
from mllama_cli.processing.grammar import Constraint

MIN_TEMPERATURE = 1e-5
"""Below it the choice is greedy, as in vLLM: dividing by less could overflow float32."""

UNIFORMS_RING = 512
"""Uniforms of a row on the device; once they are used, the host draws and uploads as many again."""

MAX_SORTED_ROWS = 16
"""Rows sorted at once; each takes about 10 MB meanwhile for a vocabulary of 128k."""


class ChosenToken(NamedTuple):
    """A token and, if ``Sampling.logprobs`` asks for them, log-probabilities of the model's own distribution."""

    id: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


class Method(NamedTuple):
    """The steps of a choice beyond an argmax: masking, adjusting logits by bias or penalties, and drawing."""

    adjusts: bool
    draws: bool
    masks: bool = False

    @classmethod
    def of(cls, sampling: Sampling) -> "Method":
        counts = sampling.repetition_penalty != 1 or sampling.frequency_penalty or sampling.presence_penalty
        adjusts = bool(counts or sampling.logit_bias)
        return cls(adjusts, sampling.temperature >= MIN_TEMPERATURE, sampling.grammar is not None)

    @property
    def takes_best(self) -> bool:
        """Whether the choice is the highest of the allowed logits."""
        return not (self.adjusts or self.draws)


GREEDY = Method(adjusts=False, draws=False)


@dataclass
class _Row:
    """A request in a row. ``index`` is where its state is on the device, whatever row it moves to."""

    index: int
    sampling: Sampling = field(default_factory=Sampling)
    method: Method = GREEDY
    constraint: Constraint | None = None
    generator: torch.Generator | None = None
    drawn: int = 0


class Sampler:
    """Chooses the next tokens of up to ``rows`` conversations.

    The order is that of transformers and vLLM: the grammar's mask, logit bias, penalties, temperature, top-k, top-p,
    min-p. Equal logits rank by id. Log-probabilities are those of the unprocessed logits, as in OpenAI's API and vLLM.
    """

    @torch.inference_mode()
    def __init__(self, rows: int, vocab_size: int, device: torch.device) -> None:
        self._vocab_size, self._device = vocab_size, device
        self._rows = [_Row(index) for index in range(rows)]
        self._groups: dict[tuple[int, int], list[_Group]] = {}
        self._held: dict[tuple[int, int], Tensor | None] = {}
        # Valid even before the first request, since capturing a step runs it.
        self._settings = Settings.row(Sampling(temperature=1.0), vocab_size).to(device).repeat(rows, 1)
        self._uniforms = torch.zeros(rows, UNIFORMS_RING, dtype=torch.float64, device=device)
        self._draws = torch.zeros(rows, dtype=torch.long, device=device)
        self._adjustments: Adjustments | None = None
        self._masks: Tensor | None = None
        self._host_masks: Tensor | None = None
        """What ``_masks`` is copied from: a copy of contiguous pinned memory does not wait for the GPU's work."""
        self.all_rows = torch.arange(rows, device=device)

    @torch.inference_mode()
    def admit(
        self, row: int, sampling: Sampling, prompt_ids: Iterable[int], constraint: Constraint | None = None
    ) -> None:
        """Start a request in a row. ``constraint`` holds its answer to ``sampling.grammar``."""
        index, method = self._rows[row].index, Method.of(sampling)
        new = _Row(index, sampling, method, constraint)
        if method != GREEDY:
            self._settings[index].copy_(upload(Settings.row(sampling, self._vocab_size), self._device))
        if method.draws:
            new.generator = torch.Generator()
            new.generator.seed() if sampling.seed is None else new.generator.manual_seed(sampling.seed)
            self._draws[index].zero_()
        if method.adjusts:
            self._tables().admit(index, sampling, prompt_ids)
        self._rows[row] = new
        self._rows_changed()

    def release(self, row: int, last: int) -> None:
        """Free a row; the request of row ``last`` moves into it."""
        self._rows[row], self._rows[last] = self._rows[last], _Row(self._rows[row].index)
        self._rows_changed()

    def _rows_changed(self) -> None:
        self._groups.clear()
        self._held.clear()

    def choose(self, logits: Tensor, first: int = 0) -> list[ChosenToken | MllamaError]:
        """Do as ``launch`` does and wait for the result."""
        return self.launch(logits, first).wait()

    @torch.inference_mode()
    def launch(self, logits: Tensor, first: int = 0) -> "PendingTokens":
        """Choose the next token of each row from ``first`` on, from logits [n, vocab_size], without waiting.

        Rows with the same method are chosen together. All earlier tokens of rows with a constraint must have been read
        (``PendingTokens.wait``).
        """
        count = logits.shape[0]
        rows = self._rows[first : first + count]
        for row in range(first, first + count):
            self.refill(row)
        self.update_masks(first, count)
        held = self._held_rows(first, count)
        tokens = best_ids(logits) if held is None else best_allowed(logits, self.masks, held)
        for group in self._grouped(first, count):
            tokens[group.positions] = self.tokens(logits[group.positions], group.indices, group.method)
        asked, constraints = [row.sampling.logprobs for row in rows], [row.constraint for row in rows]
        most = max((count for count in asked if count is not None), default=None)
        if most is None:
            return PendingTokens(tokens, tokens[:, None], asked, constraints)
        details = log_probabilities(logits, tokens, most)
        return PendingTokens(tokens, torch.cat((tokens[:, None].double(), details), dim=1), asked, constraints)

    @torch.inference_mode()
    def refill(self, row: int) -> None:
        """Upload the uniform of a row's next draw. ``choose`` does it; call it before a captured choice."""
        state = self._rows[row]
        if state.generator is None:
            return
        if state.drawn % UNIFORMS_RING == 0:
            fresh = torch.rand(UNIFORMS_RING, generator=state.generator, dtype=torch.float64)
            self._uniforms[state.index].copy_(upload(fresh, self._device))
        state.drawn += 1

    @torch.inference_mode()
    def skip(self, row: int, count: int) -> None:
        """Pass over a row's next draws, of tokens that need no choice."""
        for _ in range(count):
            self.refill(row)
        self._draws[self._rows[row].index] += count

    @torch.inference_mode()
    def update_masks(self, first: int = 0, count: int = 1) -> None:
        """Upload which tokens constraints allow next. ``launch`` does it; call it before a captured choice."""
        held = [(row.index, row.constraint) for row in self._rows[first : first + count] if row.constraint is not None]
        if not held:
            return
        if self._host_masks is None:
            self._host_masks = torch.full_like(self.masks, -1, device="cpu", pin_memory=self.masks.is_cuda)
        # A row may be written though an upload of it is not done yet: then the request it had before has ended.
        held[0][1].vocabulary.write_masks(held, self._host_masks)
        indices = [index for index, _ in held]
        changed = slice(min(indices), max(indices) + 1)
        self.masks[changed].copy_(self._host_masks[changed], non_blocking=True)

    def tokens(self, logits: Tensor, rows: Tensor, method: Method) -> Tensor:
        """Return ids int64 [n], -1 where scores are not finite, without waiting, so that it can be captured.

        ``rows`` [n] are the indices of the requests' state.
        """
        scores, settings = logits.float(), Settings.columns(self._settings[rows])
        if method.masks:
            scores = masked(scores, self.masks[rows])
        if method.adjusts:
            scores = self._tables().apply(scores, rows, settings)
        if method.draws:
            uniforms = self._uniforms[rows, self._draws[rows] % UNIFORMS_RING]
            ids = draw(Survivors.of(scores, settings), uniforms[:, None])
            self._draws[rows] += 1
        else:
            ids = best_ids(scores)
        if method.adjusts:
            self._tables().count(rows, ids)
        return ids

    def _tables(self) -> Adjustments:
        if self._adjustments is None:
            self._adjustments = Adjustments(len(self._rows), self._vocab_size, self._device)
        return self._adjustments

    @property
    def masks(self) -> Tensor:
        """Which tokens each request may choose next, by its index: int32 [rows, words], 32 tokens to a word."""
        if self._masks is None:
            shape = len(self._rows), (self._vocab_size + 31) // 32
            self._masks = torch.full(shape, -1, dtype=torch.int32, device=self._device)
        return self._masks

    def _held_rows(self, first: int, count: int) -> Tensor | None:
        """Return each row's index if it takes the best of what a grammar allows, else -1; cached until rows change.

        None if all are -1.
        """
        key = (first, count)
        if key not in self._held:
            rows = self._rows[first : first + count]
            held = [row.index if row.method.masks and row.method.takes_best else -1 for row in rows]
            self._held[key] = upload(torch.tensor(held), self._device) if max(held, default=-1) >= 0 else None
        return self._held[key]

    def _grouped(self, first: int, count: int) -> list["_Group"]:
        """Return the rows that do not take the best token, grouped by method; cached until rows change."""
        key = (first, count)
        if key not in self._groups:
            positions: dict[Method, list[int]] = {}
            for position, row in enumerate(self._rows[first : first + count]):
                if not row.method.takes_best:
                    positions.setdefault(row.method, []).append(position)
            groups = self._groups[key] = []
            for method, members in positions.items():
                for start in range(0, len(members), MAX_SORTED_ROWS):
                    some = members[start : start + MAX_SORTED_ROWS]
                    indices = [self._rows[first + position].index for position in some]
                    groups.append(_Group(method, *upload(torch.tensor([some, indices]), self._device)))
        return self._groups[key]


class PendingTokens:
    """Chosen tokens on their way to the host: ``ids`` int64 [n] on the device, -1 where logits are not finite."""

    def __init__(
        self, ids: Tensor, numbers: Tensor, asked: Sequence[int | None], constraints: Sequence[Constraint | None]
    ) -> None:
        self.ids, self._asked, self._constraints = ids, asked, constraints
        self._numbers, self._ready = numbers, None
        self._results: list[ChosenToken | MllamaError] | None = None
        if numbers.is_cuda:
            self._numbers = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._numbers.copy_(numbers, non_blocking=True)
            self._ready = torch.cuda.Event()
            self._ready.record(torch.cuda.current_stream(numbers.device))

    def wait(self) -> list[ChosenToken | MllamaError]:
        """Return each row's token, of which its constraint takes note the first time, or an error."""
        if self._results is None:
            if self._ready is not None:
                self._ready.synchronize()
            rows = zip(self._numbers.tolist(), self._asked, self._constraints, strict=True)
            self._results = [
                noted(chosen_token(int(numbers[0]), numbers[1:], asked), held) for numbers, asked, held in rows
            ]
        return self._results


class _Group(NamedTuple):
    """Rows with one method: their positions in the logits, and the indices of their state."""

    method: Method
    positions: Tensor
    indices: Tensor


def chosen_token(id_: int, details: Sequence[float] = (), asked: int | None = None) -> ChosenToken | MllamaError:
    """Return a token with the first ``asked`` of its ``log_probabilities``, or the error for id -1."""
    if id_ < 0:
        return MllamaError(
            "The model computed NaN or infinity, so no token can be chosen",
            "Use --dtype bfloat16 or float32; if that does not help, the weights are damaged.",
        )
    if asked is None:
        return ChosenToken(id_)
    count = len(details) // 2
    values, ids = details[1 : 1 + count], details[1 + count :]
    return ChosenToken(id_, details[0], tuple(zip(map(int, ids), values, strict=True))[:asked])


def noted(token: ChosenToken | MllamaError, constraint: Constraint | None) -> ChosenToken | MllamaError:
    """Let a constraint take note of the token that was chosen; return the token, or the constraint's error."""
    if constraint is None or isinstance(token, MllamaError):
        return token
    try:
        constraint.push(token.id)
    except MllamaError as error:
        return error
    return token
