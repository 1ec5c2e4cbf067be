"""Load the weights of a checkpoint in two parts: text first, then vision."""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch

from mllama_cli.checkpoint.adapters.merge import Adapters
from mllama_cli.checkpoint.names import part
from mllama_cli.checkpoint.reader import torch_dtype
from mllama_cli.checkpoint.stored import StoredMatrix
from mllama_cli.core.events import Event, LoadProgress, Notice
from mllama_cli.core.text import human_size, shown
from mllama_cli.engine.device import HEADROOM, check_fits, choose_dtype, compute_dtype, free_bytes
from mllama_cli.engine.parallel.cut import Kept, cut_network, pieces_of
from mllama_cli.engine.parallel.plan import WHOLE, Cut, Share, cut_of
from mllama_cli.engine.weights.offload import (
    OffloadPlan,
    WeightSizes,
    is_vision_layer,
    plan_for,
    refusal,
    sizes_of_shape,
)
from mllama_cli.engine.weights.place import Placement
from mllama_cli.engine.weights.read import loaded_bytes, read_tensors
from mllama_cli.kernels import ops
from mllama_cli.kernels.available import prepare
from mllama_cli.quantization.linear import AdaptedLinear, QuantizedLinear
from mllama_cli.quantization.loading import (
    adapt_linears,
    dense_shapes,
    quantize_linears,
    repack_linears,
    round_linears,
    widen_linears,
)
from mllama_cli.quantization.opening import OpenedNetwork

GROUP_BYTES = 2**30
"""Left free on each of several GPUs for NCCL, which connects them while weights load."""


class StoredWeights:
    """Load a checkpoint's weights into a network on the meta device.

    ``dtype`` is the dtype of activations and caches, ``weights_dtype`` that of matrices. The LoRA adapters in the
    folders ``adapters`` are merged into the weights, or kept apart over packed ones. Of layers that are cut, only this
    rank's ``share`` is loaded.
    """

    def __init__(
        self,
        opened: OpenedNetwork,
        device: torch.device,
        dtype: str,
        quantize: str | None,
        adapters: Sequence[Path] = (),
        share: Share = WHOLE,
    ) -> None:
        """Raise UsageError for weights to quantize that are packed already, or that cannot be cut.

        Raise DeviceError for an unknown dtype.
        Raise CheckpointError for an adapter that is damaged or does not fit.
        """
        self.config, self.network, self.device = opened.config, opened.network, device
        self.reader, self._tied, self._names = opened.reader, opened.tied, list(opened.expected)
        self._adapters = Adapters(adapters, dense_shapes(self.network, self._names))
        adapt_linears(self.network, self._adapters)
        self._widened = widen_linears(self.network, self._adapters)
        self._quantize = quantize
        self._schemes = repack_linears(self.network, self.reader, quantize, self._adapters, device)
        self._repacked = {f"{name}.weight" for name in self._schemes}
        if quantize is not None:
            self._schemes |= quantize_linears(self.network, self.config.text_config, self.reader, quantize)
        stored = torch_dtype(self.reader.tensors[self._names[0]].info)
        elements = sum(shape.numel() for shape in opened.expected.values())
        self.weights_dtype = choose_dtype(dtype, stored, elements, device)
        self.is_auto = self.weights_dtype == choose_dtype("auto", stored, elements, device)
        """Whether ``weights_dtype`` is what "auto" means here."""
        self._narrowed = dtype == "auto" and stored == torch.bfloat16 and self.weights_dtype == torch.float16
        self.dtype = compute_dtype(self.weights_dtype, device)
        self._keeps_stored = quantize is None and not adapters and self.weights_dtype == stored
        """Whether plain tensors are kept as they are stored."""
        self.share = share
        self.loaded: set[str] = set()
        """Parts that are in memory: "text", "vision"."""
        self._kept: dict[str, Kept] = {}
        self._pieces: dict[str, Kept] = {}
        """The rows and columns that are read of tensors of which others are not."""
        self._notice = self._open_other_forms()
        if share.count > 1:
            self._cut()
        self.plan: OffloadPlan | None = None
        """Chosen for the whole model when its first part is loaded."""

    def _cut(self) -> None:
        packed = {name: module for name, module in self.network.named_modules() if isinstance(module, QuantizedLinear)}
        bits = {name: module.scheme.bits for name, module in packed.items()}
        self._kept = cut_network(self.network, self.share)
        self.config = replace(self.config, text_config=self.network.language_model.config)
        self._names = [name for name in self._names if self.share.has(name.rpartition(".")[0])]
        alone = [
            name
            for name in self._names
            if name not in self._adapters
            and not self._is_widened(name)
            and not isinstance(self.reader.tensors[name], StoredMatrix)
        ]
        self._pieces = pieces_of(self._kept, alone, bits, self._schemes)

    def missing(self, *, vision: bool) -> set[str]:
        """Return the parts yet to be loaded for prompts, with images if ``vision``."""
        return ({"text", "vision"} if vision and self.config.vision_config else {"text"}) - self.loaded

    def load(self, wanted: set[str]) -> Iterator[Event]:
        """Load these parts; yield progress. Raise MemoryShortageError if they do not fit."""
        if self.plan is None:
            self.plan = self.choose_plan(wanted)
            if self._narrowed:
                yield Notice("This GPU does not support bfloat16; using float16")
            if self._notice:
                yield Notice(self._notice)
        names = [name for name in self._names if part(name, self.config.text_config) in wanted]
        check_fits(WeightSizes.of(self._sizes(names)).on_gpu(self.plan), self.device)
        if "vision" in wanted and self.plan.notice:
            yield Notice(self.plan.notice)
        if self._widened and not self.loaded:
            yield Notice(self._widening_note())
        if (note := prepare(self.device)) and not self.loaded:
            yield Notice(note)
        yield from self._fill(names, wanted, self.plan)
        self.loaded.update(wanted)

    def _widening_note(self) -> str:
        more = sum(
            self._widened_bytes(name) - self.reader.tensors[name].nbytes
            for name in filter(self._is_widened, self._names)
        )
        cost = f", {human_size(more)} more" if more > 0 else ""
        return (
            f"The adapter changes {len(self._widened)} packed matrices, which are packed again in 8 bits{cost}: "
            "4 would lose most of the change"
        )

    def choose_plan(self, wanted: set[str]) -> OffloadPlan:
        """Return a plan for the whole model, even for its text part alone. Raise MemoryShortageError if none fits."""
        if self.device.type != "cuda":
            return OffloadPlan()
        sizes = self._sizes(self._names)
        text = {name: size for name, size in sizes.items() if part(name, self.config.text_config) == "text"}
        alone = {} if "vision" in wanted else text
        free, itemsize = free_bytes(self.device), self.dtype.itemsize
        if self.share.count > 1:
            free = max(0, free - GROUP_BYTES)
        plan = plan_for(self.config, sizes, alone, free, itemsize, self._can_offload_embeddings)
        if plan is None:
            is_packed = any(isinstance(module, QuantizedLinear) for module in self.network.modules())
            packed = self._quantize or ("stored" if is_packed else "")
            raise refusal(self.config, WeightSizes.of(sizes), free, self.device, self.dtype, packed)
        return plan

    def _open_other_forms(self) -> str:
        """Make matrices whose form no kernel reads dense where that fits, else 8 bits; return a line for the user."""
        contents = self.reader.contents
        others = {name: matrix.form for name, matrix in contents.matrices() if name not in self._schemes}
        if not others:
            return self._leftover_notice()
        if self._quantize is not None:
            return ""
        label = " and ".join(sorted({form.label for form in others.values()}))
        dense = sizes_of_shape(self.config, None, self.weights_dtype.itemsize).total
        name = str(self.weights_dtype).removeprefix("torch.")
        if self._fits():
            smaller = sizes_of_shape(self.config, "int8", self.weights_dtype.itemsize).total
            return (
                f"Reading weights in the form {label} as {name}, which takes {human_size(dense)}; "
                f"--quantize int8 takes {human_size(smaller)}"
            )
        self._schemes |= round_linears(self.network, set(others))
        itemsize = self.weights_dtype.itemsize
        rounded = dense - sum(
            math.prod(form.shape) * itemsize - self._schemes[name].nbytes(*form.shape)
            for name, form in others.items()
            if name in self._schemes
        )
        return (
            f"Reading weights in the form {label} as int8, which takes {human_size(rounded)} and adds an error of "
            f"about 0.6%: as {name} they would take {human_size(dense)}, which does not fit"
        )

    def _leftover_notice(self) -> str:
        method = self.reader.declared.get("quant_method")
        if method is None or self.reader.contents.packed or self._repacked:
            return ""
        return f"config.json says that the weights are quantized by {shown(method)[1:-1]}, but they are not"

    def _fits(self) -> bool:
        """Return whether the weights fit as planned so far; on a GPU at most the embeddings may be in host memory."""
        sizes, free = self._sizes(self._names), free_bytes(self.device)
        if self.device.type != "cuda":
            return sum(sizes.values()) + HEADROOM <= free
        plan = plan_for(self.config, sizes, {}, free, self.dtype.itemsize, self._can_offload_embeddings)
        return plan is not None and not plan.vision

    def _fill(self, names: list[str], wanted: set[str], plan: OffloadPlan) -> Iterator[LoadProgress]:
        tensors = self.reader.tensors
        placement = Placement(
            self.network,
            plan,
            self.device,
            self.dtype,
            self.weights_dtype,
            self._schemes,
            self._adapters,
            self._widened,
            self._kept,
            self._pieces,
        )
        done, total = 0, sum(tensors[name].nbytes for name in names)
        yield LoadProgress(0, total)
        with self._warmed_up():
            read = read_tensors(
                self.reader,
                names,
                plan,
                self.device,
                self._repacked,
                self._pieces,
                kept=self._keeps_stored,
                ranks=self.share.count,
            )
            for name, tensor in read:
                placement.put(name, tensor, tensors[name].file.name)
                if not (plan.vision and is_vision_layer(name)):  # offloaded layers are only mapped so far
                    done += tensors[name].nbytes
                yield LoadProgress(done, total)
        if "text" in wanted and self._tied:
            placement.tie_output_layer()
        if "vision" in wanted:
            for size in placement.finish_vision():
                done = min(done + size, total)
                yield LoadProgress(done, total)

    def _warmed_up(self) -> AbstractContextManager[None]:
        if self.device.type != "cuda":
            return nullcontext()
        from mllama_cli.engine.cuda.warmup import warmed_up

        return warmed_up(self.network, self.dtype, self.device)

    def _can_offload_embeddings(self) -> bool:
        """Return whether our kernels can read them in host memory, and no output layer shares them."""
        return not self._tied and ops.reads_host_memory(self.device)

    def _sizes(self, names: list[str]) -> dict[str, int]:
        return {
            name: self._change_bytes(name)
            + (self._widened_bytes(name) if self._is_widened(name) else self._bytes(name))
            for name in names
        }

    def _change_bytes(self, name: str) -> int:
        """Return the bytes of adapters' matrices that are kept apart from this one."""
        owner, _, attribute = name.rpartition(".")
        module = self.network.get_submodule(owner)
        if not isinstance(module, AdaptedLinear) or attribute not in ("weight", "weight_packed"):
            return 0
        return (module.lora_a.numel() + module.lora_b.numel()) * self.weights_dtype.itemsize

    def _is_widened(self, name: str) -> bool:
        owner, _, attribute = name.rpartition(".")
        return owner in self._widened and attribute != "bias"

    def _widened_bytes(self, name: str) -> int:
        owner, _, attribute = name.rpartition(".")
        module, info = self.network.get_submodule(owner), self.reader.tensors[name].info
        assert isinstance(module, QuantizedLinear)
        elements = {"weight_packed": module.weight_packed.numel(), "weight_scale": module.weight_scale.numel()}
        return elements.get(attribute, 2) * torch_dtype(info).itemsize

    def _bytes(self, name: str) -> int:
        owner, _, attribute = name.rpartition(".")
        cut = cut_of(owner)
        nbytes = loaded_bytes(
            self.reader.tensors[name],
            packed=attribute.startswith("weight_"),
            scheme=self._schemes.get(name.removesuffix(".weight")),
            copied=name in self._adapters or (self.share.count > 1 and cut is Cut.INPUTS),
            dtype=self.weights_dtype,
            device=self.device,
        )
        return nbytes if cut in (Cut.WHOLE, Cut.FIRST) else nbytes // self.share.count
