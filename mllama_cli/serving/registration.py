"""The names under which clients of this user find an engine."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

from mllama_cli.engine.engine import Engine
from mllama_cli.remote.engines import EngineKey


def keys_of(engine: Engine, asked: EngineKey) -> Sequence[EngineKey]:
    """Return the keys that mean an engine that was asked for with one: "auto" may stand for what was chosen."""
    weights = engine.model.weights
    chosen = str(weights.weights_dtype).removeprefix("torch.") if weights is not None else asked.dtype
    kind = engine.device.type
    devices = [asked.device, str(engine.device), *([kind] if engine.device.index in (None, 0) else [])]
    pairs = dict.fromkeys(product(devices, (asked.dtype, chosen)))
    return [
        replace(asked, device=device, dtype=dtype, visible="" if device == "cpu" else asked.visible)
        for device, dtype in pairs
    ]
