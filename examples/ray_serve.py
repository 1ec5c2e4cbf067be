"""Caption pictures over HTTP with Ray Serve: one replica for each GPU, whose requests share the slots of its engine.

serve run examples.ray_serve:app model=11b
curl --data-binary @photo.jpg http://localhost:8000/
"""

from typing import Any

from ray import serve
from ray.serve import Application
from starlette.requests import Request

from mllama_cli.ray import Captioner


@serve.deployment(max_ongoing_requests=64)
class Captions:
    def __init__(self, model: str | None) -> None:
        self._captioner = Captioner(model)

    async def __call__(self, request: Request) -> dict[str, Any]:
        batch = await self._captioner({"key": ["picture"], "bytes": [await request.body()]})
        return {name: values[0] for name, values in batch.items()}


def app(args: dict[str, str]) -> Application:
    gpus = float(args.get("gpus", 1))  # gpus=0 runs on the CPU
    return Captions.options(ray_actor_options={"num_gpus": gpus}).bind(args.get("model"))
