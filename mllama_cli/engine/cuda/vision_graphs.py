"""Run the vision tower as captured graphs, a sequence of them for each number of tiles.

Launching its 600 kernels one by one takes the host longer than a small image takes the device.
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mllama_cli.engine.cuda.capture import capture
from mllama_cli.engine.device import free_bytes
from mllama_cli.model.image_kv import LayerKV
from mllama_cli.model.mllama import MllamaForConditionalGeneration

GRAPH_HEADROOM = 3 * 2**30
"""Bytes that must be free to capture a graph, which keeps its activations."""


PART_LAYERS = 5
"""Layers in one graph: 4 to 6 ms for 4 tiles on an H200, after which others may have their turn."""


@dataclass(frozen=True)
class _Captured:
    parts: list[tuple[torch.cuda.CUDAGraph, int]]
    """Graphs to replay in order, with the number of layers that are done after each."""
    pixels: Tensor
    ids: Tensor
    result: Tensor | list[LayerKV]
    """The keys and values, or the states from which several ranks compute theirs."""


class VisionGraphs:
    """Encode the first image with some number of tiles eagerly, later ones by replaying graphs."""

    def __init__(
        self, network: MllamaForConditionalGeneration, device: torch.device, *, states_only: bool = False
    ) -> None:
        """``states_only`` leaves the keys and values out of the graphs: several ranks compute them together."""
        self._network, self._device, self._states_only = network, device, states_only
        self._seen: set[int] = set()
        self._captured: dict[int, _Captured] = {}
        self._pool: Any = None
        # A graph cannot replay the uploads of offloaded layers (engine/weights/offloaded_vision.py).
        self._fixed = all(parameter.is_cuda for parameter in network.model.vision_model.parameters())

    @torch.inference_mode()
    def steps(self, pixel_values: Tensor, aspect_ratio_id: int) -> Generator[int, None, list[LayerKV]]:
        """Encode as MllamaModel.encode_image does, and yield how many layers are done after each part.

        An image has to be done before the next one begins: graphs share their memory.
        """
        tiles = pixel_values.shape[0]
        if tiles not in self._captured:
            if tiles not in self._seen or not self._worth_capturing():
                self._seen.add(tiles)
                return (yield from self._network.model.encode_image_steps(pixel_values, aspect_ratio_id))
            self._captured[tiles] = self._capture(pixel_values)
        captured = self._captured[tiles]
        captured.pixels.copy_(pixel_values, non_blocking=True)
        captured.ids.fill_(aspect_ratio_id)
        for graph, layers in captured.parts:
            graph.replay()
            yield layers
        if isinstance(captured.result, Tensor):
            return self._network.language_model.cross_keys_values(captured.result)
        return [(keys.clone(), values.clone()) for keys, values in captured.result]

    def _worth_capturing(self) -> bool:
        return self._fixed and free_bytes(self._device, cached=False) >= GRAPH_HEADROOM

    def _capture(self, pixel_values: Tensor) -> _Captured:
        weight = self._network.model.vision_model.patch_embedding.weight
        pixels = torch.zeros(pixel_values.shape, dtype=weight.dtype, device=self._device)
        ids = torch.ones(1, dtype=torch.int64, device=self._device)
        model = self._network.model
        steps: Generator[int, None, Tensor | list[LayerKV]] = model.encode_tiles_steps(pixels, ids)
        if self._states_only:
            steps = model.states_steps(pixels, ids)
        parts: list[tuple[torch.cuda.CUDAGraph, int]] = []
        result: Tensor | list[LayerKV] | None = None

        def advance() -> int:
            nonlocal result
            layers = 0
            try:
                for _ in range(PART_LAYERS):
                    layers = next(steps)
            except StopIteration as end:
                result = end.value
            return layers

        stream = torch.cuda.Stream(self._device)
        while result is None:
            # No warm-up: an image with as many tiles has been encoded before.
            graph, layers = capture(advance, stream, self._pool, warm_up=False)
            self._pool = graph.pool()
            parts.append((graph, layers or parts[-1][1]))
        return _Captured(parts, pixels, ids, result)
