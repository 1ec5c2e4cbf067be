"""Choose which weights to offload if a GPU is too small for all of them, as few as necessary.

The embeddings go first: the GPU reads the few rows that it needs over the bus, which costs microseconds for each token.
Next are the layers of the vision tower, which are uploaded for every image (engine/weights/offloaded_vision.py).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache

import torch

from mllama_cli.core.config import MllamaConfig
from mllama_cli.core.errors import MemoryShortageError
from mllama_cli.engine.device import gib
from mllama_cli.engine.weights.memory import min_working_bytes
from mllama_cli.engine.weights.shapes import network_of_shape
from mllama_cli.kernels.codes import TABLES
from mllama_cli.quantization.linear import QuantizedLinear

_VISION_LAYERS = ("model.vision_model.transformer.layers.", "model.vision_model.global_transformer.layers.")


@dataclass(frozen=True)
class OffloadPlan:
    """The parts to keep in page-locked host memory; by default none."""

    embeddings: bool = False
    vision: bool = False

    def covers(self, name: str) -> bool:
        """Return whether a parameter stays in host memory."""
        return (self.embeddings and is_embedding(name)) or (self.vision and is_vision_layer(name))

    def __str__(self) -> str:
        """Return a phrase such as "embeddings in host memory"; empty if nothing is offloaded."""
        parts = ["embeddings"] * self.embeddings + ["vision tower"] * self.vision
        return f"{' and '.join(parts)} in host memory" if parts else ""

    @property
    def notice(self) -> str:
        """A line for the user about what is slower; empty if nothing is."""
        if not self.vision:
            return ""
        return "The GPU is too small for all weights: the vision tower's are uploaded for each image"


PLANS = (OffloadPlan(), OffloadPlan(True), OffloadPlan(False, True), OffloadPlan(True, True))
"""From the fastest to the one that takes the least GPU memory."""


@dataclass(frozen=True)
class WeightSizes:
    """Bytes of all weights, of the embeddings, of the vision tower's layers, and of the largest of these layers."""

    total: int
    embeddings: int = 0
    vision: int = 0
    layer: int = 0

    @classmethod
    def of(cls, sizes: Mapping[str, int]) -> "WeightSizes":
        """Sum the bytes of all parameters, given by name."""
        layers: dict[str, int] = {}
        for name, size in sizes.items():
            if is_vision_layer(name):
                before, _, after = name.partition(".layers.")
                layer = f"{before}.{after.partition('.')[0]}"
                layers[layer] = layers.get(layer, 0) + size
        embeddings = sum(size for name, size in sizes.items() if is_embedding(name))
        return cls(sum(sizes.values()), embeddings, sum(layers.values()), max(layers.values(), default=0))

    def on_gpu(self, plan: OffloadPlan) -> int:
        """Return the bytes on the GPU with a plan: of an offloaded vision tower, two layers as buffers."""
        total = self.total
        if plan.embeddings:
            total -= self.embeddings
        if plan.vision:
            total -= max(0, self.vision - 2 * self.layer)
        return total


@cache
def sizes_of_shape(config: MllamaConfig, quantize: str | None, itemsize: int = 2) -> WeightSizes:
    """Return the sizes for a config without weights; ``quantize`` as in ``network_of_shape``."""
    network = network_of_shape(config, quantize)
    sizes = {n: p.numel() * (itemsize if p.is_floating_point() else p.itemsize) for n, p in network.named_parameters()}
    for name, module in network.named_modules():
        if isinstance(module, QuantizedLinear) and module.scheme.code in TABLES:
            sizes[f"{name}.weight_scale"] = module.weight_scale.numel() * 4  # float32, whatever else is
    return WeightSizes.of(sizes)


def choose_plan(
    sizes: WeightSizes, work: int, free: int, *, can_offload_embeddings: Callable[[], bool] = lambda: True
) -> OffloadPlan | None:
    """Return the fastest plan with which the weights and ``work`` bytes fit into ``free``; None if there is none.

    ``can_offload_embeddings`` may have to build a kernel, so it is called only if it matters.
    """
    for plan in PLANS:
        if sizes.on_gpu(plan) + work <= free and (not plan.embeddings or can_offload_embeddings()):
            return plan
    return None


def plan_for(
    config: MllamaConfig,
    sizes: Mapping[str, int],
    text: Mapping[str, int],
    free: int,
    itemsize: int,
    can_offload_embeddings: Callable[[], bool],
) -> OffloadPlan | None:
    """Return the plan for a model whose parameters have these ``sizes``; None if none fits into ``free`` bytes.

    ``text`` has the sizes of the text part if only that is wanted now, otherwise it is empty. A model whose text part
    fits alone is not refused.
    """
    work = min_working_bytes(config, itemsize)
    plan = choose_plan(WeightSizes.of(sizes), work, free, can_offload_embeddings=can_offload_embeddings)
    if plan is None and text:
        work = min_working_bytes(replace(config, vision_config=None), itemsize)
        plan = choose_plan(WeightSizes.of(text), work, free, can_offload_embeddings=can_offload_embeddings)
        plan = plan and replace(plan, vision=True)
    return plan


def plan_for_shape(config: MllamaConfig, quantize: str | None, free: int, itemsize: int = 2) -> OffloadPlan | None:
    """Return the plan for a model of this shape in ``free`` bytes; None if none fits."""
    sizes = sizes_of_shape(config, quantize, itemsize)
    work = min_working_bytes(config, itemsize)
    return choose_plan(sizes, work, free, can_offload_embeddings=lambda: not config.text_config.tie_word_embeddings)


def refusal(
    config: MllamaConfig, sizes: WeightSizes, free: int, device: torch.device, dtype: torch.dtype, packed: str
) -> MemoryShortageError:
    """Return the error for weights that do not fit, suggesting options that would help.

    ``packed`` is int8, int4, "stored" (quantized in the checkpoint) or empty.
    """
    smallest = OffloadPlan(embeddings=not config.text_config.tie_word_embeddings, vision=True)
    needed = sizes.on_gpu(smallest) + min_working_bytes(config, dtype.itemsize)
    remedies = []
    if dtype == torch.float32 and packed != "stored":
        remedies.append(("--dtype bfloat16", packed or None, 2))
    if packed in ("", "int8"):
        remedies.append(("--quantize int4", "int4", dtype.itemsize))
    hint = "Close other programs that use the GPU, or use --device cpu."
    for option, quantize, itemsize in remedies:
        if plan_for_shape(config, quantize, free, itemsize):
            hint = f"Use {option}, with which it fits, or --device cpu."
            break
    return MemoryShortageError(
        f"The model needs {gib(needed)} of {device} with as much as possible in host memory, but {gib(free)} are free",
        hint,
    )


def is_embedding(name: str) -> bool:
    return name.endswith("embed_tokens.weight")


def is_vision_layer(name: str) -> bool:
    """Return whether a parameter belongs to one of the vision tower's layers."""
    return name.startswith(_VISION_LAYERS)
