"""Caption pictures over HTTP with Ray Serve: one replica for each GPU, whose requests share the slots of its engine.

MLLAMA_MODEL=11b serve run examples.ray_serve:app
curl --data-binary @photo.jpg http://localhost:8000/
"""

import os
from typing import Any

import ray
from ray import serve
from starlette.requests import Request

from mllama_cli.ray import Captioner

GPU = {"num_gpus": 1} if ray.is_initialized() and ray.cluster_resources().get("GPU") else {}


@serve.deployment(ray_actor_options=GPU, max_ongoing_requests=64)
class Captions:
    def __init__(self) -> None:
        self._captioner = Captioner(os.environ.get("MLLAMA_MODEL"))

    async def __call__(self, request: Request) -> dict[str, Any]:
        batch = await self._captioner({"key": ["picture"], "bytes": [await request.body()]})
        return {name: values[0] for name, values in batch.items()}


app = Captions.bind()
