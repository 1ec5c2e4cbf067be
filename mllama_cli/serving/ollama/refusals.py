"""What this server does not do of ollama's protocol: it neither changes models nor makes embeddings."""

from starlette.requests import Request
from starlette.responses import Response

from mllama_cli.core.errors import ModelNotFoundError, UsageError
from mllama_cli.serving.json_response import json_response, read_object
from mllama_cli.serving.ollama.fields import read_model
from mllama_cli.serving.service import Service


async def pull(request: Request) -> Response:
    """Say that the model is here if it is, as programs pull before they ask; download nothing."""
    service: Service = request.app.state.service
    try:
        service.names.require(read_model(await read_object(request)))
    except ModelNotFoundError as error:
        raise ModelNotFoundError(
            f"{error.message}, and this server downloads no models", f"{error.hint} Get others with `mllama download`."
        ) from error
    return json_response({"status": "success"})


async def change(request: Request) -> Response:
    """Refuse to push, create, copy or delete a model, or to take a part of one."""
    raise UsageError("this server does not change models", "Use the mllama command on the machine that it runs on.")


async def embed(request: Request) -> Response:
    """Refuse to make embeddings."""
    raise UsageError("this model does not support embeddings", "Ask a server with an embedding model.")
