"""What operators and tools ask a server about itself: GET /health, /metrics and /openapi.json."""

from functools import cache
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response

from mllama_cli.serving.json_response import json_response
from mllama_cli.serving.metrics import Metrics
from mllama_cli.serving.service import Service


async def health(request: Request) -> Response:
    """Answer 200 where requests are taken, and 503 while the model loads, once it has failed, and at the end."""
    service: Service = request.app.state.service
    return json_response({"status": service.state}, 200 if service.state == "ok" else 503)


async def metrics(request: Request) -> Response:
    """Answer with the metrics in Prometheus' text format."""
    service: Service = request.app.state.service
    return Response(service.metrics.page(), headers={"content-type": Metrics.content_type})


async def openapi(request: Request) -> Response:
    """Answer with the description of this interface."""
    return Response(_document(), media_type="application/json")


@cache
def _document() -> bytes:
    return files(__package__).joinpath("openapi.json").read_bytes()
