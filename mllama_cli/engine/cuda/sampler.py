"""The next token chosen on the device: the steps of engine/sampling.py in the same order, for every row at once."""

from collections.abc import Iterable

import torch
from torch import Tensor

from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.cuda.step import State
from mllama_cli.kernels.cuda.embed_argmax import Best

RING = 1024
"""Random numbers that lie ready for each row; the host refills a half while the other is used."""


class Choice:
    """Sampling settings of every row as device memory, and the launches that turn logits into tokens.

    A row's random numbers come from its own generator on the CPU, so a seed gives the same numbers on every device.
    """

    def __init__(self, state: State) -> None:
        self.state = state
        batch, size = state.logits.shape
        device = state.logits.device

        def setting(value: float) -> Tensor:
            return torch.full((batch, 1), value, dtype=torch.float32, device=device)

        self.seen = torch.zeros(batch, size, dtype=torch.uint8, device=device)
        self.penalty, self.temperature, self.top_p, self.min_p = setting(1), setting(1), setting(1), setting(0)
        self.top_k = torch.full((batch, 1), size, dtype=torch.int64, device=device)
        self.numbers = torch.zeros(batch, RING, dtype=torch.float32, device=device)
        self.counts = torch.zeros(batch, 1, dtype=torch.int64, device=device)
        self._best = Best(batch, size, device)
        self._generators: dict[int, torch.Generator] = {}

    def set_row(self, row: int, sampling: Sampling, prompt: Iterable[int]) -> None:
        """Use these settings for a row from the next choice on."""
        size = self.seen.shape[1]
        self.seen[row].zero_()
        if sampling.repetition_penalty != 1:
            # The image token's id is vocab_size: it has no logit.
            known = sorted({id_ for id_ in prompt if id_ < size})
            self.seen[row, torch.tensor(known, dtype=torch.long).to(self.seen.device)] = 1
        self.penalty[row] = sampling.repetition_penalty
        if sampling.temperature > 0:
            self.temperature[row] = sampling.temperature
            self.top_p[row] = sampling.top_p
            self.min_p[row] = sampling.min_p
            self.top_k[row] = min(sampling.top_k or size, size)
            generator = torch.Generator()
            generator.seed() if sampling.seed is None else generator.manual_seed(sampling.seed)
            self._generators[row] = generator
            self.counts[row] = 0
            self.refill(row, 0)
        else:
            self._generators.pop(row, None)

    def refill(self, row: int, chosen: int) -> None:
        """Call before a row's choice number ``chosen``: every half ring new random numbers go to the device."""
        generator = self._generators.get(row)
        half = RING // 2
        if generator is None or chosen % half:
            return
        fresh = torch.rand(half, generator=generator)
        if self.numbers.is_cuda:
            fresh = fresh.pin_memory()
        begin = chosen % RING
        self.numbers[row, begin : begin + half].copy_(fresh, non_blocking=True)

    def greedy(self) -> None:
        """state.logits -> state.tokens (-1 where they are not finite); positions move on."""
        state = self.state
        self._best(state.logits, self.seen, self.penalty, state.tokens, state.positions)

    def sampled(self) -> None:
        """As ``greedy``, drawing from what temperature, top-k, top-p and min-p leave."""
        state = self.state
        scores = state.logits.float()
        punished = torch.where(scores < 0, scores * self.penalty, scores / self.penalty)
        scores = torch.where(self.seen.bool(), punished, scores) / self.temperature
        ordered, order = scores.sort(dim=-1, descending=True)
        ordered = ordered.masked_fill(ordered < ordered.gather(1, self.top_k - 1), -torch.inf)
        probabilities = ordered.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities
        # A token stays while those before it have less than top_p together, so the first always stays.
        probabilities = probabilities.masked_fill((before >= self.top_p) & (self.top_p < 1), 0)
        probabilities = probabilities.masked_fill(probabilities < self.min_p * probabilities[:, :1], 0)
        reached = probabilities.cumsum(-1)
        number = self.numbers.gather(1, self.counts % RING)
        place = (reached <= number * reached[:, -1:]).sum(-1, keepdim=True)
        place = torch.minimum(place, (probabilities > 0).sum(-1, keepdim=True) - 1).clamp(min=0)
        chosen = order.gather(1, place)
        sound = torch.isfinite(probabilities[:, :1])  # the sort puts NaN first
        self.seen.scatter_(1, chosen, 1)
        state.tokens.copy_(torch.where(sound, chosen, -1)[:, 0])
        state.positions.add_(1)
        self.counts.add_(1)
