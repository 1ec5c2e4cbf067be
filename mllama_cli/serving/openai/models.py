"""GET /v1/models and /v1/models/{id}."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from mllama_cli.serving.json_response import json_response
from mllama_cli.serving.service import Service


async def list_models(request: Request) -> Response:
    """Return the model under each of its names."""
    service: Service = request.app.state.service
    return json_response({"object": "list", "data": [_model(service, name) for name in service.names.all]})


async def get_model(request: Request) -> Response:
    """Return the model of one name."""
    service: Service = request.app.state.service
    name = request.path_params["name"]
    service.names.require(name)
    return json_response(_model(service, name))


def _model(service: Service, name: str) -> dict[str, Any]:
    created = int(service.engine.path.stat().st_mtime) if service.engine.path.exists() else 0
    root = service.names.main
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "mllama",
        "root": root,
        "max_model_len": service.max_context,
    }
