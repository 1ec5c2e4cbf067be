"""How a network is cut over ranks (processes with a device each), as data."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase

from mllama_cli.core.config import MllamaTextConfig
from mllama_cli.core.errors import UsageError


class Cut(Enum):
    """What each rank has of a module."""

    WHOLE = "whole"
    """All of it."""
    OUTPUTS = "outputs"
    """An equal part of the rows: some heads, or some of the inner features."""
    INPUTS = "inputs"
    """An equal part of the columns; the sum of all ranks' products is the whole product."""
    VOCABULARY = "vocabulary"
    """A part of the rows, as equal as possible; all ranks' logits one after the other are the whole."""
    FIRST = "first"
    """All of it on rank 0, nothing on the others."""


RULES = (
    ("model.vision_model*", Cut.FIRST),
    ("model.multi_modal_projector", Cut.FIRST),
    ("*.layers.*.[qkv]_proj", Cut.OUTPUTS),
    ("*.layers.*.o_proj", Cut.INPUTS),
    ("*.layers.*.gate_proj", Cut.OUTPUTS),
    ("*.layers.*.up_proj", Cut.OUTPUTS),
    ("*.layers.*.down_proj", Cut.INPUTS),
    ("lm_head", Cut.VOCABULARY),
)
"""Patterns of module names, the first that matches counts; all others are whole."""


def cut_of(module: str) -> Cut:
    """Return how a module of a network is cut.

    >>> cut_of("model.language_model.layers.0.mlp.down_proj")
    <Cut.INPUTS: 'inputs'>
    """
    return next((cut for pattern, cut in RULES if fnmatchcase(module, pattern)), Cut.WHOLE)


@dataclass(frozen=True)
class Share:
    """The part of ``rank`` among ``count`` ranks."""

    rank: int = 0
    count: int = 1

    def part(self, size: int) -> slice:
        """Return this rank's part of ``size`` rows or columns; parts differ by one at most.

        >>> [Share(rank, 3).part(8) for rank in range(3)]
        [slice(0, 2, None), slice(2, 5, None), slice(5, 8, None)]
        """
        return slice(self.rank * size // self.count, (self.rank + 1) * size // self.count)

    def has(self, module: str) -> bool:
        """Return whether this rank has anything of a module."""
        return self.rank == 0 or cut_of(module) is not Cut.FIRST

    def kept(self, module: str, outputs: int, inputs: int) -> tuple[slice, slice]:
        """Return the rows and columns that this rank has of a module's matrix [outputs, inputs]."""
        cut = cut_of(module)
        rows = self.part(outputs) if cut in (Cut.OUTPUTS, Cut.VOCABULARY) else slice(0, outputs)
        return rows, self.part(inputs) if cut is Cut.INPUTS else slice(0, inputs)


WHOLE = Share()
"""The share of a process that has no others."""


def fewest_ranks(config: MllamaTextConfig, available: int, fits: Callable[[Share], bool]) -> int:
    """Return over how few of the ``available`` devices a model has to be cut so that every share ``fits``.

    If it never does, or if one device is enough, return 1.
    """
    for count in range(1, available + 1):
        if not any(size % count for size in _sizes(config)) and all(fits(Share(rank, count)) for rank in range(count)):
            return count
    return 1


def require_divisible(config: MllamaTextConfig, count: int) -> None:
    """Raise UsageError unless a model of this shape can be cut into ``count`` equal parts."""
    for size, name in (
        (config.num_key_value_heads, "key/value heads"),
        (config.num_attention_heads, "attention heads"),
        (config.intermediate_size, "features of its feed-forward layers"),
    ):
        if size % count:
            fitting = [str(n) for n in possible_ranks(config) if n < count]
            raise UsageError(
                f"This model cannot be cut over {count} devices: they do not divide its {size} {name}",
                f"Use {' or '.join(fitting)} devices, or one." if fitting else "Use one device.",
            )
    if config.vocab_size < count:
        raise UsageError(f"This model cannot be cut over {count} devices: its vocabulary is smaller", "Use one device.")


def possible_ranks(config: MllamaTextConfig) -> list[int]:
    """Return the numbers of ranks, from 2 on, that divide a model of this shape.

    >>> possible_ranks(MllamaTextConfig())
    [2, 4, 8]
    """
    most = config.num_key_value_heads
    return [count for count in range(2, most + 1) if not any(size % count for size in _sizes(config))]


def _sizes(config: MllamaTextConfig) -> tuple[int, int, int]:
    return config.num_key_value_heads, config.num_attention_heads, config.intermediate_size
