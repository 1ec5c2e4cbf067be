"""Read and write the ``quantization_config`` of config.json: compressed-tensors, format ``pack-quantized``.

Groups of modules, given by targets, have a scheme each. A target is a module's exact name, a ``re:`` expression or the
name of a class.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from mllama_cli.checkpoint.names import canonical, hub_name
from mllama_cli.core.config import DAMAGED, MAX_WIDTH, section
from mllama_cli.core.errors import CheckpointError
from mllama_cli.core.text import shown
from mllama_cli.kernels.packed import BITS
from mllama_cli.quantization.patterns import Pattern
from mllama_cli.quantization.schemes import Scheme

_WHERE = "config.json: quantization_config"
FORMAT = "pack-quantized"
PRESETS = {"W4A16": Scheme(4, 128), "W8A16": Scheme(8, 128)}
"""Schemes that a config may name without describing them."""

_STORED_IN_ORDER = (None, False, "weight", "static")
"""Values of actorder under which the columns keep their order; under others a g_idx permutes them."""

VISION_MODULES = ("vision_model", "multi_modal_projector")


@dataclass(frozen=True)
class ConfigGroups:
    """The modules that a checkpoint stores packed, with their schemes."""

    groups: tuple[tuple[Scheme, tuple[str, ...]], ...]
    ignore: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "ConfigGroups":
        """Parse the config. Raise CheckpointError, naming the feature, for anything unsupported."""
        method = data.get("quant_method")
        if method != "compressed-tensors":
            raise _unsupported(f"quantization by {_word(method)}")
        for key in ("kv_cache_scheme", "transform_config"):
            if data.get(key):
                raise _unsupported(f"{key} {shown(data[key])}")
        sparsity = section(data, "sparsity_config", _WHERE)
        if sparsity.get("format", "dense") != "dense":
            raise _unsupported(f"sparsity of format {_word(sparsity['format'])}")
        declared = section(data, "config_groups", _WHERE)
        if not declared:
            raise CheckpointError(f"{_WHERE} has no config_groups", DAMAGED)
        groups = []
        for name, group in declared.items():
            if isinstance(group, list):
                if name.upper() not in PRESETS:
                    raise _unsupported(f"the scheme {_word(name)}")
                groups.append((PRESETS[name.upper()], _texts(group, name)))
            else:
                group = section(declared, name, _WHERE)
                format_ = group.get("format") or data.get("format")
                if format_ != FORMAT:
                    raise _unsupported(f"the format {_word(format_)}")
                groups.append((_scheme(group), _texts(group.get("targets"), "targets")))
        return cls(tuple(groups), _texts(data.get("ignore"), "ignore"))

    def scheme_of(self, name: str) -> Scheme | None:
        """Return the scheme of a linear layer; None if it is not quantized.

        As in compressed-tensors, ``ignore`` comes first, then exact names, then expressions, then "Linear"; among
        expressions the first in alphabetical order counts.
        """
        if any(pattern == "Linear" or matches(name, pattern) for pattern in self.ignore):
            return None
        targets = {target: scheme for scheme, targets in self.groups for target in targets}
        for target in sorted(targets, key=lambda target: (target.startswith("re:"), target)):
            if matches(name, target):
                return targets[target]
        return targets.get("Linear")


def matches(name: str, pattern: str) -> bool:
    """Return whether a pattern matches a module's name in either key layout. Expressions match from its beginning.

    The layout that a config uses depends on its author's version of transformers.
    """
    weight = f"{name}.weight"
    names = [change(weight).removesuffix(".weight") for change in (str, canonical, hub_name)]
    if not pattern.startswith("re:"):
        return pattern in names
    expression = _parsed(pattern.removeprefix("re:"))
    return any(expression.match(each) for each in names)


@lru_cache(maxsize=4096)
def _parsed(expression: str) -> Pattern:
    return Pattern(expression)


def patterns_of(names: Iterable[str]) -> list[str]:
    """Return expressions that match these modules of a Mllama network in every layout, and nothing else.

    There is one for each kind of module, with the numbers of its layers. Expressions of disjoint sets never match the
    same name, since tools differ in which of two matches counts.
    """
    layers: dict[tuple[str, str], list[str]] = {}
    single = []
    for name in names:
        found = re.fullmatch(r"(.*)\.layers\.(\d+)\.(.*)", name)
        if found is None:
            single.append(f"re:(.*\\.)?{re.escape(name.rpartition('.')[2])}$")
        else:
            # Above the layers are `model` or `language_model`, `transformer` or `global_transformer`.
            tower = found[1].rpartition(".")[2]
            above = f"vision_model\\.{tower}" if "vision_model" in found[1] else "model"
            layers.setdefault((above, found[3]), []).append(found[2])
    kinds = [
        f"re:.*{above}\\.layers\\.({'|'.join(numbers)})\\.{re.escape(kind)}$"
        for (above, kind), numbers in layers.items()
    ]
    return [*kinds, *single]


def quantization_config(schemes: Mapping[str, Scheme], kept: Iterable[str]) -> dict[str, Any]:
    """Return the ``quantization_config`` for linear layers with these schemes; ``kept`` ones are not quantized."""
    groups = {}
    for number, scheme in enumerate(sorted(set(schemes.values()))):
        mine = [name for name, each in schemes.items() if each == scheme]
        groups[f"group_{number}"] = {
            "targets": patterns_of(mine),
            "weights": {
                "num_bits": scheme.bits,
                "type": "int",
                "symmetric": True,
                "strategy": "group" if scheme.group_size else "channel",
                "group_size": scheme.group_size or None,
                "dynamic": False,
            },
            "input_activations": None,
            "output_activations": None,
        }
    whole = [tower for tower in VISION_MODULES if not any(tower in name for name in schemes)]
    rest = [name for name in kept if not any(tower in name for tower in whole)]
    return {
        "quant_method": "compressed-tensors",
        "format": FORMAT,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": [*(f"re:.*{tower}.*" for tower in whole), *patterns_of(rest)],
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def _scheme(group: Mapping[str, Any]) -> Scheme:
    weights = section(group, "weights", _WHERE)
    if not weights:
        raise CheckpointError("config.json: a config group has no weights", DAMAGED)
    for activations in ("input_activations", "output_activations"):
        if group.get(activations):
            raise _unsupported(f"quantized activations ({activations})")
    bits, kind = weights.get("num_bits"), weights.get("type", "int")
    if kind != "int":
        raise _unsupported(f"weights of type {_word(kind)} ({_word(bits)} bit)")
    if type(bits) is not int or bits not in BITS:
        raise _unsupported(f"{_word(bits)}-bit weights")
    if not weights.get("symmetric", True):
        raise _unsupported("asymmetric weights with zero points")
    if (order := weights.get("actorder")) not in _STORED_IN_ORDER:
        raise _unsupported(f"activation order {shown(order)} (g_idx)")
    if weights.get("dynamic"):
        raise _unsupported("dynamic weight scales")
    strategy, size = weights.get("strategy"), weights.get("group_size")
    grouped = type(size) is int and 0 < size <= MAX_WIDTH
    if strategy == "channel" or (strategy is None and not grouped and size == -1):
        return Scheme(bits, 0)
    if strategy in ("group", None) and grouped:
        return Scheme(bits, int(size or 0))
    raise _unsupported(f"the strategy {_word(strategy)} with group size {_word(size)}")


def _texts(value: Any, name: str) -> tuple[str, ...]:
    if value is not None and not (isinstance(value, list) and all(isinstance(each, str) for each in value)):
        raise CheckpointError(f"{_WHERE}: {name} must be a list of texts, not {shown(value)}", DAMAGED)
    return tuple(value or ())


def _word(value: Any) -> str:
    return shown(value).strip("'")


def _unsupported(what: str) -> CheckpointError:
    return CheckpointError(
        f"config.json: this checkpoint uses {what}, which is not supported",
        f"compressed-tensors in the format {FORMAT} is: symmetric 4- or 8-bit weights (W4A16, W8A16).",
    )
