"""Read adapter_config.json: the few settings that the weights of an adapter do not tell themselves."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mllama_cli.checkpoint.files import ADAPTER_CONFIG, adapter_base
from mllama_cli.checkpoint.names import canonical, hub_name
from mllama_cli.core.config import section
from mllama_cli.core.errors import COPY_AGAIN, CheckpointError
from mllama_cli.core.text import shown
from mllama_cli.system.json_file import read_json

_STARTS_THAT_KEEP_THE_BASE = ("gaussian", "eva", "orthogonal")
"""Ways to begin the training that leave the base's weights as they are. PiSSA, OLoRA and others change them."""

_UNSUPPORTED = ("layer_replication", "alora_invocation_tokens", "use_qalora", "use_bdlora", "arrow_config")
"""Settings with which an adapter is more than a change of the weights."""

_PLAIN_NAME = re.compile(r"[\w.-]+")
_MAX_PATTERNS = 10_000


@dataclass(frozen=True)
class AdapterSettings:
    """What an adapter's config says: ``alpha`` and ``patterns`` of it by module, and the ``base`` it was made for."""

    rank: int
    alpha: float
    patterns: tuple[tuple[str, float], ...]
    uses_root: bool
    uses_dora: bool
    base: str

    def scale(self, module: str, rank: int) -> float:
        """Return the factor of B A for a module, by its name in the adapter, and its rank.

        A pattern may name modules in another layout than the weights do, as older and newer tools call them.
        """
        weight = f"{module}.weight"
        names = [module, *(change(weight).removesuffix(".weight") for change in (canonical, hub_name))]
        alpha = next((value for pattern, value in self.patterns if any(_fits(pattern, name) for name in names)), None)
        alpha = self.alpha if alpha is None else alpha
        return alpha / (math.sqrt(rank) if self.uses_root else rank)


def read_settings(folder: Path) -> AdapterSettings:
    """Return the settings of the adapter in a folder. Raise CheckpointError for another kind, or a damaged file."""
    raw = read_json(folder / ADAPTER_CONFIG)
    where = str(folder / ADAPTER_CONFIG)
    kind = raw.get("peft_type")
    if not isinstance(kind, str) or kind.upper() != "LORA":
        raise CheckpointError(f"{where}: peft_type is {shown(kind)}", "Only LoRA adapters can be merged.")
    for name in _UNSUPPORTED:
        if raw.get(name):
            raise _unsupported(where, f"{name} {shown(raw[name])}")
    start = raw.get("init_lora_weights")
    if isinstance(start, str) and start.lower() not in _STARTS_THAT_KEEP_THE_BASE:
        raise _unsupported(where, f"init_lora_weights {shown(start)}, which changed the weights of the base")
    return AdapterSettings(
        rank=int(_number(raw, "r", where)),
        alpha=_number(raw, "lora_alpha", where),
        patterns=_patterns(raw, where),
        uses_root=bool(raw.get("use_rslora")),
        uses_dora=bool(raw.get("use_dora")),
        base=adapter_base(folder),
    )


def _number(raw: Mapping[str, Any], name: str, where: str) -> float:
    value = raw.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < abs(value) < 1e9:
        raise CheckpointError(f"{where}: {name} must be a number, not {shown(value)}", COPY_AGAIN)
    return float(value)


def _patterns(raw: Mapping[str, Any], where: str) -> tuple[tuple[str, float], ...]:
    """Return alpha_pattern as names. PEFT reads them as regular expressions, which strangers' are not run as here."""
    declared = section(raw, "alpha_pattern", where)
    if len(declared) > _MAX_PATTERNS:
        raise CheckpointError(f"{where}: alpha_pattern has {len(declared)} entries", COPY_AGAIN)
    found = []
    for pattern in declared:
        name = pattern.replace("\\.", ".").removesuffix("$")
        if not _PLAIN_NAME.fullmatch(name.removeprefix("^")):
            raise _unsupported(where, f"the expression {shown(pattern)} in alpha_pattern")
        found.append((name, _number(declared, pattern, where)))
    return tuple(found)


def _fits(pattern: str, module: str) -> bool:
    """Return whether a pattern is a module's name or its end; only the name itself if it begins with ^."""
    if pattern.startswith("^"):
        return module == pattern.removeprefix("^")
    return module == pattern or module.endswith(f".{pattern}")


def _unsupported(where: str, what: str) -> CheckpointError:
    return CheckpointError(
        f"{where} has {what}, which is not supported",
        "Merge it with peft (merge_and_unload), save the model, and use that.",
    )
