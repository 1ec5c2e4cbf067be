"""Complete products of which each rank computes a part."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mllama_cli.engine.parallel.group import Group
from mllama_cli.engine.parallel.plan import Cut, Share, cut_of
from mllama_cli.model.layers import Projection
from mllama_cli.model.mllama import MllamaForConditionalGeneration
from mllama_cli.model.text import MllamaForCausalLM


class SumOfRanks:
    """Add the products of all ranks, each of some inputs."""

    def __init__(self, group: Group) -> None:
        self.group = group

    def __call__(self, product: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        total = product(x)
        self.group.all_reduce(total)
        return total


class VocabularyOfRanks:
    """Put the logits of all ranks, each of some tokens, one after the other."""

    def __init__(self, group: Group, size: int) -> None:
        self.group = group
        count = group.share.count
        self._parts = [Share(rank, count).part(size) for rank in range(count)]
        self._longest = max(part.stop - part.start for part in self._parts)

    def __call__(self, product: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return self.gathered(product(x))

    def gathered(self, logits: Tensor) -> Tensor:
        """Return the logits of the whole vocabulary from this rank's."""
        missing = self._longest - logits.shape[-1]
        everyone = self.group.all_gather((F.pad(logits, (0, missing)) if missing else logits).contiguous())
        if self._longest * len(self._parts) == self._parts[-1].stop:
            return everyone.movedim(0, -2).flatten(-2)  # without copying, for one row
        pairs = zip(self._parts, everyone, strict=True)
        return torch.cat([one[..., : part.stop - part.start] for part, one in pairs], dim=-1)


def connect(network: MllamaForConditionalGeneration | MllamaForCausalLM, group: Group) -> None:
    """Let the layers of a network that is cut complete their products."""
    total = SumOfRanks(group)
    vocabulary = VocabularyOfRanks(group, network.language_model.config.vocab_size)
    for name, module in network.named_modules():
        if isinstance(module, Projection):
            cut = cut_of(name)
            if cut is Cut.INPUTS:
                module.exchange = total
            elif cut is Cut.VOCABULARY:
                module.exchange = vocabulary
