"""What ollama's clients ask about models: /api/tags, /api/ps, /api/show and /api/version."""

import asyncio
import hashlib
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from mllama_cli.checkpoint.files import weight_files
from mllama_cli.core.version import __version__
from mllama_cli.engine.engine import Engine
from mllama_cli.hub.inspect import Inspection, inspect
from mllama_cli.quantization.linear import QuantizedLinear
from mllama_cli.serving.json_response import json_response, read_object
from mllama_cli.serving.ollama.fields import read_model
from mllama_cli.serving.service import Service

OLLAMA_VERSION = "0.24.0"
"""The last ollama that ran this model: clients compare it to know what they may ask."""

_NEVER = "2300-01-01T00:00:00Z"
_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


async def version(request: Request) -> Response:
    """Return the ollama whose protocol this is, and our own version."""
    return json_response({"version": OLLAMA_VERSION, "mllama": __version__})


async def tags(request: Request) -> Response:
    """Return the model under each of its names."""
    service: Service = request.app.state.service
    found = await _facts(service)
    return json_response(
        {"models": [{**_entry(service, found, name), "modified_at": found.modified} for name in _names(service)]}
    )


async def ps(request: Request) -> Response:
    """Return the model if its weights are in memory."""
    service: Service = request.app.state.service
    if not service.is_loaded:
        return json_response({"models": []})
    keep = service.keep_alive
    found = await _facts(service)
    entry = {
        **_entry(service, found, _names(service)[0]),
        "expires_at": _NEVER if keep is None else _timestamp(time.time() + keep),
        "size_vram": found.inspection.size if service.engine.device.type != "cpu" else 0,
        "context_length": service.max_context,
    }
    return json_response({"models": [entry]})


async def show(request: Request) -> Response:
    """Return what is known about the model."""
    service: Service = request.app.state.service
    if name := read_model(await read_object(request)):
        service.names.require(name)
    found = await _facts(service)
    template = service.engine.processor.chat_template
    parameters = service.engine.default_sampling()
    shown = {"temperature": parameters.temperature, "top_p": parameters.top_p, "top_k": parameters.top_k}
    return json_response(
        {
            "license": found.inspection.license,
            "modelfile": f"FROM {service.names.main}\n",
            "parameters": "\n".join(f"{key:30} {value}" for key, value in shown.items()),
            "template": template.source if template is not None else "{{ .Prompt }}",
            "details": _details(service, found),
            "model_info": _model_info(service, found),
            "capabilities": ["completion", *(["vision"] if service.engine.has_vision else [])],
            "modified_at": found.modified,
        }
    )


@dataclass(frozen=True)
class _Facts:
    inspection: Inspection
    digest: str
    modified: str


async def _facts(service: Service) -> _Facts:
    return await asyncio.to_thread(_read_facts, service.engine.path)


@lru_cache(maxsize=8)
def _read_facts(folder: Path) -> _Facts:
    """Read a checkpoint's headers once. The digest tells checkpoints apart without reading gigabytes."""
    files = weight_files(folder)
    sizes = [(file.name, file.stat().st_size) for file in files]
    digest = hashlib.sha256((folder / "config.json").read_bytes() + repr(sizes).encode()).hexdigest()
    newest = max(file.stat().st_mtime for file in files)
    return _Facts(inspect(folder), digest, _timestamp(newest))


def _timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def _names(service: Service) -> list[str]:
    """Return the names as ollama lists them: with a tag, which is "latest" where none was given."""
    return [name if ":" in name else f"{name}:latest" for name in service.names.all]


def _entry(service: Service, found: _Facts, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "model": name,
        "size": found.inspection.size,
        "digest": found.digest,
        "details": _details(service, found),
    }


def _details(service: Service, found: _Facts) -> dict[str, Any]:
    family = "mllama" if service.engine.has_vision else "llama"
    count = found.inspection.total
    return {
        "parent_model": "",
        "format": "safetensors",
        "family": family,
        "families": [family],
        "parameter_size": f"{count / 1e9:.1f}B" if count >= 1e8 else f"{count / 1e6:.1f}M",
        "quantization_level": quantization_level(service.engine),
    }


def quantization_level(engine: Engine) -> str:
    """Return the number format of the weights in memory: a checkpoint may be quantized while it loads."""
    bits = sorted({m.scheme.bits for m in engine.network.modules() if isinstance(m, QuantizedLinear)})
    dtype = str(engine.dtype).removeprefix("torch.")
    return "+".join(f"INT{each}" for each in bits) or _DTYPES.get(dtype, dtype.upper())


def _model_info(service: Service, found: _Facts) -> dict[str, Any]:
    text, vision = found.inspection.config.text_config, found.inspection.config.vision_config
    info: dict[str, Any] = {
        "general.architecture": "mllama" if vision is not None else "llama",
        "general.basename": service.names.main,
        "general.parameter_count": found.inspection.total,
    }
    kind = info["general.architecture"]
    info |= {
        f"{kind}.context_length": service.max_context,
        f"{kind}.embedding_length": text.hidden_size,
        f"{kind}.block_count": text.num_hidden_layers,
        f"{kind}.feed_forward_length": text.intermediate_size,
        f"{kind}.attention.head_count": text.num_attention_heads,
        f"{kind}.attention.head_count_kv": text.num_key_value_heads,
        f"{kind}.attention.cross_attention_layers": list(text.cross_attention_layers),
        f"{kind}.vocab_size": text.vocab_size,
    }
    if vision is not None:
        info |= {
            "mllama.vision.block_count": vision.num_hidden_layers,
            "mllama.vision.global.block_count": vision.num_global_layers,
            "mllama.vision.embedding_length": vision.hidden_size,
            "mllama.vision.image_size": vision.image_size,
            "mllama.vision.patch_size": vision.patch_size,
            "mllama.vision.max_num_tiles": vision.max_num_tiles,
        }
    return info
