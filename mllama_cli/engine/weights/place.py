"""The weights of one checkpoint on their way from its files into a network, in two parts: text first, then pictures."""

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mllama_cli.checkpoint.header import TensorInfo
from mllama_cli.checkpoint.names import part
from mllama_cli.checkpoint.reader import CheckpointReader, torch_dtype
from mllama_cli.core.config import MllamaConfig
from mllama_cli.core.events import Event, LoadProgress, Notice
from mllama_cli.engine.cards import plan_for, refusal
from mllama_cli.engine.device import check_fits, choose_dtype, compute_dtype, free_bytes
from mllama_cli.engine.forward import CHUNK, Network
from mllama_cli.engine.weights.host_memory import to_host
from mllama_cli.engine.weights.memory import prefill_rows
from mllama_cli.engine.weights.offload import MemoryPlan, Weights, is_tower_layer
from mllama_cli.engine.weights.offloaded_vision import StreamedTower
from mllama_cli.kernels import ops
from mllama_cli.model.mllama import MllamaForConditionalGeneration
from mllama_cli.quantization.linear import QuantizedLinear
from mllama_cli.quantization.loading import load_quantized_linears, quantize_into, quantize_linears
from mllama_cli.quantization.schemes import Scheme


class StoredWeights:
    """Fills a network that stands on the meta device, and knows what of it is loaded, in which format and where.

    ``dtype`` is that of activations and caches, ``weights_dtype`` the one in which matrices are kept.
    """

    def __init__(
        self,
        folder: Path,
        raw: dict[str, Any],
        config: MllamaConfig,
        network: Network,
        device: torch.device,
        dtype: str,
        quantize: str | None,
    ) -> None:
        """Raises CheckpointError where files and ``config`` (``raw`` as it is stored) do not belong together."""
        self.config, self.network, self.device = config, network, device
        self.reader = CheckpointReader(folder)
        load_quantized_linears(network, raw)
        expected = {name: tensor.shape for name, tensor in network.named_parameters()}
        tied = config.text_config.tie_word_embeddings and "lm_head.weight" not in self.reader.tensors
        self._tied = tied and expected.pop("lm_head.weight", None) is not None
        self.reader.check(expected)
        self._names = list(expected)
        self._quantize = quantize
        self._made: dict[str, Scheme] = {}
        if quantize is not None:
            self._made = quantize_linears(network, raw, config.text_config, self.reader, quantize)
        stored = torch_dtype(self.reader.tensors[self._names[0]].info)
        elements = sum(shape.numel() for shape in expected.values())
        self.weights_dtype = choose_dtype(dtype, stored, elements, device)
        self._narrowed = dtype == "auto" and stored == torch.bfloat16 and self.weights_dtype == torch.float16
        self.dtype = compute_dtype(self.weights_dtype, device)
        self.loaded: set[str] = set()
        """Parts that are in memory: "text", "vision"."""
        self.plan: MemoryPlan | None = None
        """What lies in host memory; decided for the whole model when its first part is loaded."""
        self.prefill_rows = CHUNK
        """Rows of a prompt that go through the network at once; decided when weights have been loaded."""

    def load(self, *, vision: bool = False) -> Iterator[Event]:
        """Load what is not there yet of the text part and, with ``vision``, of what images need; yields progress."""
        config = self.config.text_config
        parts = {"text", "vision"} if vision and self.config.vision_config else {"text"}
        wanted = parts - self.loaded
        if not wanted:
            return
        names = [name for name in self._names if part(name, config) in wanted]
        total = sum(self.reader.tensors[name].nbytes for name in names)
        if self.plan is None:
            self.plan = self.planned(wanted)
            if self._narrowed:
                yield Notice("This GPU computes in no bfloat16: the model runs in float16")
        plan = self.plan
        sizes = Weights.of({name: self._bytes(name, self.reader.tensors[name].info) for name in names})
        check_fits(sizes.on_gpu(plan), self.device)
        if "vision" in wanted and plan.notice:
            yield Notice(plan.notice)
        ops.prepare(self.device)
        done = 0
        modules = dict(self.network.named_modules())
        yield LoadProgress(0, total)
        with self._first_prompt_rehearsed():
            for name, tensor in self._read(names, plan):
                if name == "lm_head.weight":
                    tensor = tensor[: config.vocab_size]  # rows that people add for fine-tuning are never sampled
                owner, attribute = name.rpartition(".")[::2]
                if name.endswith(".weight") and owner in self._made:
                    quantize_into(modules[owner], name, tensor.to(self.device), self.reader.tensors[name].file.name)
                else:
                    value = self._placed(modules[owner], name, tensor, plan)
                    modules[owner].register_parameter(attribute, nn.Parameter(value, requires_grad=False))
                if not (plan.tower_streamed and is_tower_layer(name)):  # which so far is only mapped
                    done += self.reader.tensors[name].nbytes
                yield LoadProgress(done, total)
        if "text" in wanted and self._tied:
            table = self.network.language_model.embed_tokens.weight
            self.network.lm_head.weight = nn.Parameter(table[: config.vocab_size], requires_grad=False)
        if "vision" in wanted and isinstance(self.network, MllamaForConditionalGeneration):
            tower = self.network.model.vision_model
            if plan.tower_streamed:
                for size in StreamedTower(tower, self.device).pack():
                    done = min(done + size, total)
                    yield LoadProgress(done, total)
            elif self.device.type == "cuda":
                tower.fuse_projections()
        self.loaded.update(wanted)
        free = free_bytes(self.device) if self.device.type == "cuda" else 0
        self.prefill_rows = prefill_rows(self.config, self.dtype.itemsize, self.device.type, free)

    def _first_prompt_rehearsed(self) -> AbstractContextManager[None]:
        if self.device.type != "cuda":
            return nullcontext()
        from mllama_cli.engine.cuda.warmup import warmed_up

        return warmed_up(self.network, self.dtype, self.device)

    def _format(self, owner: nn.Module) -> torch.dtype:
        """Matrices keep the weights' format; norms, gates and the like are small and get that of the computation."""
        return self.weights_dtype if isinstance(owner, nn.Linear | nn.Embedding) else self.dtype

    def _placed(self, owner: nn.Module, name: str, tensor: Tensor, plan: MemoryPlan) -> Tensor:
        """A stored tensor where and in the format in which the network takes it."""
        # The tower's layers go from the mapped file into their blocks when all are there.
        device = torch.device("cpu") if plan.tower_streamed and is_tower_layer(name) else self.device
        if isinstance(owner, QuantizedLinear) and not name.endswith(".bias"):
            return owner.checked(name, tensor).to(device)
        if plan.on_host(name) and device == self.device:
            return to_host(tensor, self._format(owner), self.device)
        return tensor.to(device, self._format(owner))

    def _read(self, names: Sequence[str], plan: MemoryPlan) -> Iterator[tuple[str, Tensor]]:
        """The stored tensors: on a GPU already there; those that stay in host memory are views of mapped files."""
        if self.device.type != "cuda" or not hasattr(os, "preadv"):
            yield from self.reader.read(list(names))
            return
        from mllama_cli.checkpoint.gpu_reader import read_to_gpu

        yield from self.reader.read([name for name in names if plan.on_host(name)])
        rest = [(name, self.reader.tensors[name]) for name in names if not plan.on_host(name)]
        yield from read_to_gpu(rest, self.device)

    def planned(self, wanted: set[str]) -> MemoryPlan:
        """For the whole model, also where only its text part is wanted now. MemoryShortageError where none will do."""
        if self.device.type != "cuda":
            return MemoryPlan()
        sizes = {name: self._bytes(name, self.reader.tensors[name].info) for name in self._names}
        text = {name: size for name, size in sizes.items() if part(name, self.config.text_config) == "text"}
        free = free_bytes(self.device)
        plan = plan_for(
            self.config,
            sizes,
            {} if "vision" in wanted else text,
            free,
            self.dtype.itemsize,
            self._embeddings_may_leave,
        )
        if plan is None:
            packed = self._quantize or ("stored" if self._is_packed() else "")
            raise refusal(self.config, Weights.of(sizes), free, self.device, self.dtype, packed)
        return plan

    def _embeddings_may_leave(self) -> bool:
        """Whether the GPU can read them in host memory: our kernels can, and an output layer must not share them."""
        return not self._tied and ops.reads_host_memory(self.device)

    def _is_packed(self) -> bool:
        return any(isinstance(module, QuantizedLinear) for module in self.network.modules())

    def _bytes(self, name: str, info: TensorInfo) -> int:
        """Bytes that loading takes. On a CPU, weights kept in their own format stay in the mapped file."""
        stored = torch_dtype(info)
        if (scheme := self._made.get(name.removesuffix(".weight"))) is not None:
            rows, inputs = info.shape
            return rows * (4 * scheme.words(inputs) + stored.itemsize * scheme.groups(inputs))
        packed = name.rpartition(".")[2].startswith("weight_")
        if self.device.type == "cpu" and (packed or stored == self.weights_dtype):
            return 0
        return info.nbytes if packed else info.elements * self.weights_dtype.itemsize
