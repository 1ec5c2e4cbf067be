"""Cut an empty network to the share of one rank, and say which part of each stored tensor it needs."""

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from mllama_cli.core.errors import UsageError
from mllama_cli.engine.parallel.plan import Cut, Share, cut_of
from mllama_cli.model.mllama import MllamaForConditionalGeneration
from mllama_cli.model.text import MllamaForCausalLM
from mllama_cli.quantization.linear import QuantizedLinear
from mllama_cli.quantization.schemes import Scheme

Kept = tuple[slice, slice]
"""The rows and columns of a matrix that a rank has."""


def cut_network(network: MllamaForConditionalGeneration | MllamaForCausalLM, share: Share) -> dict[str, Kept]:
    """Cut the linear layers of a network on the meta device; return what is kept of those that are cut, by module.

    The configs of the language model become those of one rank. Raise UsageError for packed layers whose words would be
    cut.
    """
    kept: dict[str, Kept] = {}
    for name, module in network.named_modules():
        if not isinstance(module, nn.Linear | QuantizedLinear) or cut_of(name) in (Cut.WHOLE, Cut.FIRST):
            continue
        rows, columns = kept[name] = share.kept(name, module.out_features, module.in_features)
        if isinstance(module, nn.Linear):
            module.out_features, module.in_features = rows.stop - rows.start, columns.stop - columns.start
            empty = torch.empty(module.out_features, module.in_features, dtype=module.weight.dtype, device="meta")
            module.weight = nn.Parameter(empty, requires_grad=False)
            continue
        if any(end * module.scheme.bits % 32 for end in (columns.start, columns.stop)):
            raise UsageError(
                f"This model cannot be cut over {share.count} devices: {name} is packed in {module.scheme.bits} bits, "
                f"and {module.in_features} inputs would be cut within a word",
                "Use fewer devices.",
            )
        module.cut(rows, columns)
    _share_configs(network, share.count)
    return kept


def _share_configs(network: MllamaForConditionalGeneration | MllamaForCausalLM, count: int) -> None:
    model = network.language_model
    model.config = model.config.shared_by(count)
    if isinstance(network, MllamaForCausalLM):
        network.config = model.config


def pieces_of(
    kept: Mapping[str, Kept], names: Iterable[str], bits: Mapping[str, int], schemes: Mapping[str, Scheme]
) -> dict[str, Kept]:
    """Return the rows and columns to read of each stored tensor of ``names`` that a rank reads in part.

    Matrices are among them unless their quantization while loading by ``schemes`` needs columns of other ranks. Columns
    of a layer's packed words, of so many ``bits`` a weight, are counted in words.
    """
    pieces: dict[str, Kept] = {}
    for name in names:
        owner, _, attribute = name.rpartition(".")
        if owner not in kept:
            continue
        rows, columns = kept[owner]
        if attribute == "weight_packed":
            per_word = 32 // bits[owner]
            pieces[name] = rows, slice(columns.start // per_word, -(-columns.stop // per_word))
        elif attribute == "weight" and (owner not in schemes or _is_apart(schemes[owner], columns)):
            pieces[name] = rows, columns
    return pieces


def _is_apart(scheme: Scheme, columns: slice) -> bool:
    """Return whether the scales of some columns depend on no others."""
    size = scheme.group_size
    return bool(size) and columns.start % size == 0 and columns.stop % size == 0
