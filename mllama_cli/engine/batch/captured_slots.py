"""Slots whose steps are captured graphs, on one device or on several that share the model."""

from collections.abc import Iterable

import torch
from torch import Tensor

from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.batch.slot_graphs import SlotGraphs
from mllama_cli.engine.batch.slots import SlotCaches, Slots
from mllama_cli.engine.forward import Network
from mllama_cli.engine.model import LoadedModel
from mllama_cli.engine.parallel.team import Team
from mllama_cli.kernels.cuda.launch import compile_only
from mllama_cli.kernels.ops import best_allowed
from mllama_cli.processing.grammar import Constraint


class CapturedSlots(Slots):
    """Slots that ``SlotGraphs`` step."""

    @torch.inference_mode()
    def __init__(self, model: LoadedModel, count: int) -> None:
        super().__init__(model, count)
        given = (model.network, model.dtype, model.device, count)
        float8 = model.image_kv is not None
        self._device = (
            SlotGraphs(*given, float8=float8)
            if model.team is None
            else LeadingSlotGraphs(model.team, *given, float8=float8)
        )
        self._tokens = self._device.state.tokens
        self._can_mask = False
        """Whether the kernels that choose among the tokens of grammars have been built."""

    @torch.inference_mode()
    def admit(
        self,
        caches: SlotCaches,
        sampling: Sampling,
        prompt: Iterable[int],
        constraint: Constraint | None = None,
    ) -> None:
        super().admit(caches, sampling, prompt, constraint)
        self.moved(self.busy - 1)

    @torch.inference_mode()
    def release(self, slot: int) -> None:
        last = self.busy - 1
        super().release(slot)
        self._device.release(slot, last)

    def moved(self, slot: int) -> None:
        self._device.point(slot, self.caches[slot])

    @torch.inference_mode()
    def prepare(self) -> bool:
        if not self._can_mask:
            self._can_mask = True
            with compile_only():
                best_allowed(self._device.state.logits[: self.count], self.sampler.masks, self.sampler.all_rows)
        return self._device.prepare()

    def _forward(self) -> Tensor:
        return self._device.step(self.busy, any(caches.seen for caches in self.caches))

    def _advance(self) -> None:
        super()._advance()
        self._device.advance(self.busy)


class LeadingSlotGraphs(SlotGraphs):
    """The graphs on rank 0: what is done with them, the other ranks do with theirs."""

    def __init__(
        self,
        team: Team,
        network: Network,
        dtype: torch.dtype,
        device: torch.device,
        count: int,
        *,
        float8: bool = False,
    ) -> None:
        self._team, self._name = team, team.names.of_slots(self)
        with team.together("make_slots", self._name, count, float8, alike=True):
            super().__init__(network, dtype, device, count, float8=float8)

    def point(self, row: int, caches: SlotCaches) -> None:
        with self._team.together("on_slots", self._name, "point", row, caches, alike=True):
            super().point(row, caches)

    def release(self, slot: int, last: int) -> None:
        with self._team.together("on_slots", self._name, "release", slot, last, alike=True):
            super().release(slot, last)

    def prepare(self) -> bool:
        with self._team.together("on_slots", self._name, "prepare", alike=True):
            return super().prepare()

    def step(self, busy: int, with_images: bool) -> Tensor:
        with self._team.together("on_slots", self._name, "step", busy, with_images, alike=True):
            return super().step(busy, with_images)

    def advance(self, busy: int) -> None:
        with self._team.together("on_slots", self._name, "advance", busy, alike=True):
            super().advance(busy)
