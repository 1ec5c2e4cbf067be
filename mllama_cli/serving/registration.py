"""The names under which clients of this user find an engine."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import product
from pathlib import Path

from mllama_cli.core.errors import EngineError
from mllama_cli.engine.device import choose_device
from mllama_cli.engine.engine import Engine
from mllama_cli.remote.engines import EngineKey, Registration


def keys_of(engine: Engine, asked: EngineKey) -> Sequence[EngineKey]:
    """Return the keys that mean an engine that was asked for with one: "auto" may stand for what was chosen."""
    weights, device = engine.model.weights, engine.device
    dtypes, devices = [asked.dtype], [asked.device, str(device)]
    if weights is not None:
        dtypes += [str(weights.weights_dtype).removeprefix("torch."), *(["auto"] if weights.is_auto else [])]
    if engine.model.team is not None:
        devices = [asked.device]
    elif device.index in (None, 0):
        devices += [device.type, *(["auto"] if choose_device().type == device.type else [])]
    return [asked.for_device(*pair) for pair in dict.fromkeys(product(devices, dtypes))]


@contextmanager
def registered(
    engine: Engine,
    device: str | None,
    dtype: str | None,
    quantize: str | None,
    exact: bool,
    adapters: Sequence[Path],
) -> Iterator[Registration | None]:
    """Let clients of this user find an engine that was asked for so; None where another has all its names, or fails."""
    registration = None
    with suppress(EngineError, OSError):  # the server is of use all the same
        given = (device or "auto", dtype or "auto", quantize, exact, adapters)
        asked = EngineKey.of(engine.path, *given, engine.model.image_kv, engine.model.fast)
        registration = Registration.create(keys_of(engine, asked))
    del engine  # which the server drops when nobody uses it
    try:
        yield registration
    finally:
        if registration is not None:
            registration.close()
