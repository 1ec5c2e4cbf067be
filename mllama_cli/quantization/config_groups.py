"""Write the ``quantization_config`` of config.json: compressed-tensors, format ``pack-quantized``.

Groups of modules, given by ``re:`` expressions, have a scheme each. We read none of this back: what a layer is, is read
off its tensors.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from mllama_cli.quantization.schemes import Scheme

FORMAT = "pack-quantized"

VISION_MODULES = ("vision_model", "multi_modal_projector")


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
