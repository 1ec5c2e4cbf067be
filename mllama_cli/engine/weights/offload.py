"""What of a model lies in host memory because a GPU is too small for all of it: as little as need be.

Two parts can be there. The embeddings, of which the GPU then reads the few rows that it needs over the bus: some
microseconds a token. And the layers of the vision tower, which are uploaded one after the other for each picture, while
the one before computes (engine/weights/offloaded_vision.py). So the embeddings go first.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

_TOWER = ("model.vision_model.transformer.layers.", "model.vision_model.global_transformer.layers.")


@dataclass(frozen=True)
class MemoryPlan:
    """What lies in pinned host memory; by default nothing."""

    embeddings_on_host: bool = False
    tower_streamed: bool = False

    def on_host(self, name: str) -> bool:
        """Whether the parameter so named stays in host memory."""
        return (self.embeddings_on_host and is_embedding(name)) or (self.tower_streamed and is_tower_layer(name))

    def __str__(self) -> str:
        """What lies in host memory, in words; empty where nothing does."""
        parts = ["embeddings"] * self.embeddings_on_host + ["vision tower"] * self.tower_streamed
        return f"{' and '.join(parts)} in host memory" if parts else ""

    @property
    def notice(self) -> str:
        """One line for the user about what is slower; empty where nothing is."""
        if not self.tower_streamed:
            return ""
        return "The GPU is too small for all weights: the vision tower's come from host memory for each picture"


PLANS = (MemoryPlan(), MemoryPlan(True), MemoryPlan(False, True), MemoryPlan(True, True))
"""From the fastest to the smallest."""


@dataclass(frozen=True)
class Weights:
    """Bytes of all weights, and of them: the embeddings, the vision tower's layers, and the largest of these layers."""

    total: int
    embeddings: int = 0
    tower: int = 0
    layer: int = 0

    @classmethod
    def of(cls, sizes: Mapping[str, int]) -> "Weights":
        """From the bytes of each parameter by its name."""
        layers: dict[str, int] = {}
        for name, size in sizes.items():
            if is_tower_layer(name):
                before, _, after = name.partition(".layers.")
                layer = f"{before}.{after.partition('.')[0]}"
                layers[layer] = layers.get(layer, 0) + size
        embeddings = sum(size for name, size in sizes.items() if is_embedding(name))
        return cls(sum(sizes.values()), embeddings, sum(layers.values()), max(layers.values(), default=0))

    def on_gpu(self, plan: MemoryPlan) -> int:
        """Bytes that a plan leaves on the GPU: for a streamed tower two layers, used by turns."""
        total = self.total
        if plan.embeddings_on_host:
            total -= self.embeddings
        if plan.tower_streamed:
            total -= max(0, self.tower - 2 * self.layer)
        return total


def choose_plan(
    weights: Weights, work: int, free: int, *, embeddings_may_leave: Callable[[], bool] = lambda: True
) -> MemoryPlan | None:
    """The fastest plan with which the weights and ``work`` bytes fit into ``free`` ones; None where none does.

    ``embeddings_may_leave`` is asked only when it matters: it may have to build a kernel to know.
    """
    for plan in PLANS:
        if weights.on_gpu(plan) + work <= free and (not plan.embeddings_on_host or embeddings_may_leave()):
            return plan
    return None


def is_embedding(name: str) -> bool:
    return name.endswith("embed_tokens.weight")


def is_tower_layer(name: str) -> bool:
    """Whether a parameter belongs to one of the vision tower's layers, and not to what is around them."""
    return name.startswith(_TOWER)
