"""A checkpoint folder -> an Engine: network and processor, ready to answer."""

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from mllama_cli.checkpoint.names import part
from mllama_cli.checkpoint.reader import DTYPES, STORED_DTYPES, CheckpointReader
from mllama_cli.checkpoint.safetensors_header import TensorInfo
from mllama_cli.core.config import GenerationConfig, MllamaConfig
from mllama_cli.core.conversation import Conversation, ImagePart
from mllama_cli.core.errors import UsageError
from mllama_cli.core.events import Event, LoadProgress, Notice
from mllama_cli.core.json_file import read_json
from mllama_cli.engine.batch import Reply, answer_batch
from mllama_cli.engine.cards import plan_for, refusal
from mllama_cli.engine.decoder import Network
from mllama_cli.engine.device import check_fits, choose_device, choose_dtype, compute_dtype, free_bytes
from mllama_cli.engine.fast import FastDecoding
from mllama_cli.engine.host_memory import to_host
from mllama_cli.engine.memory_plan import MemoryPlan, Weights, is_tower_layer
from mllama_cli.engine.sampling import Sampling
from mllama_cli.engine.session import Session
from mllama_cli.engine.streamed_tower import StreamedTower
from mllama_cli.engine.work_sizes import WorkSizes, work_sizes
from mllama_cli.kernels import dispatch
from mllama_cli.kernels.tables import reads_host_memory
from mllama_cli.model.cache import CrossKVCache, KVCache, LayerKV
from mllama_cli.model.layers import result_of
from mllama_cli.model.mllama import MllamaForConditionalGeneration, empty_network
from mllama_cli.model.visibility import ImageSpan
from mllama_cli.processing.processor import MllamaProcessor
from mllama_cli.quantization.linear import QuantizedLinear
from mllama_cli.quantization.loading import quantize_into, replace_stored, replace_wished
from mllama_cli.quantization.schemes import Scheme


def load(
    model: str | Path | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    vision: bool = False,
    quantize: str | None = None,
    exact: bool = False,
    progress: Callable[[Event], None] | None = None,
) -> "Engine":
    """Load a model: a folder, an installed model's name, an alias, or a hub id in the cache.

    None takes the only model that was downloaded or made here, else the built-in one.

    ``vision`` also loads what images need; otherwise it comes in with the first image. Nothing is ever downloaded.
    ``quantize``, "int4" or "int8", makes the language model small while it loads. ``exact`` forbids, for the whole
    process, to round activations to 8 bits, which a CPU does for products with packed matrices.
    Raises ModelNotFoundError, CheckpointError, DeviceError or MemoryShortageError.
    """
    from mllama_cli.checkpoint.catalog import default_model, resolve

    if model is None:
        entry = default_model()
        folder, name = entry.path, entry.name
    else:
        folder, name = resolve(str(model)), str(model)
    engine = Engine(folder, name, device=device, dtype=dtype, quantize=quantize, exact=exact)
    for event in engine.load_weights(vision=vision):
        if progress is not None:
            progress(event)
    return engine


class Engine:
    """A model that answers. Made by ``load``."""

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        device: str = "auto",
        dtype: str = "auto",
        quantize: str | None = None,
        exact: bool = False,
    ) -> None:
        dispatch.set_exact(exact or dispatch.is_exact())
        self.path = folder
        self.name = name
        raw = read_json(folder / "config.json")
        self.config = MllamaConfig.from_dict(raw)
        generation = folder / "generation_config.json"
        self.generation_config = GenerationConfig.from_dict(read_json(generation) if generation.is_file() else {})
        self.eos = frozenset(self.generation_config.eos_token_id or self.config.text_config.eos_token_id)
        self.can_see = self.config.vision_config is not None
        self.device = choose_device(device)
        self._reader = CheckpointReader(folder)
        self.network: Network = empty_network(self.config)
        replace_stored(self.network, raw)
        expected = {name: tensor.shape for name, tensor in self.network.named_parameters()}
        tied = self.config.text_config.tie_word_embeddings and "lm_head.weight" not in self._reader.tensors
        self._tied = tied and expected.pop("lm_head.weight", None) is not None
        self._reader.check(expected)
        self._names = list(expected)
        self._made: dict[str, Scheme] = {}
        if quantize is not None:
            self._made = replace_wished(self.network, raw, self.config.text_config, self._reader, quantize)
        stored = DTYPES[self._reader.tensors[self._names[0]].info.dtype]
        elements = sum(shape.numel() for shape in expected.values())
        self.weights_dtype = choose_dtype(dtype, stored, elements, self.device)
        self._narrowed = dtype == "auto" and stored == torch.bfloat16 and self.weights_dtype == torch.float16
        self.dtype = compute_dtype(self.weights_dtype, self.device)
        self.processor = MllamaProcessor.from_pretrained(folder, self.config.image_token_index, vision=self.can_see)
        self._loaded: set[str] = set()
        self._quantize = quantize
        self.plan: MemoryPlan | None = None
        """What lies in host memory; decided for the whole model when its first part is loaded."""
        self.work = WorkSizes()
        """How much is done at once; decided when weights have been loaded."""
        self.fast = FastDecoding(self.dtype, self.device)

    @property
    def sees(self) -> bool:
        """Whether what images need is in memory."""
        return "vision" in self._loaded

    def default_sampling(self) -> Sampling:
        return Sampling.from_defaults(self.generation_config)

    def session(self) -> Session:
        return Session(self)

    def stream(self, conversation: Conversation, sampling: Sampling | None = None) -> Iterator[Event]:
        """Events of one answer: Notice, EncodingImage, ReadingPrompt, Token ..., and at last GenerationStats."""
        return self.session().stream(conversation, sampling)

    def answer_batch(self, conversations: Sequence[Conversation], sampling: Sampling | None = None) -> list[Reply]:
        """Answers to several conversations at once, whatever their lengths and numbers of images."""
        return answer_batch(self, conversations, sampling)

    @property
    def vision_layers(self) -> int:
        """Layers of the vision tower."""
        config = self.config.vision_config
        return config.num_hidden_layers + config.num_global_layers if config else 0

    def encode_image(self, image: ImagePart) -> list[LayerKV]:
        """Keys and values that each cross-attention layer reads of one image."""
        return result_of(self.encode_image_steps(image))

    @torch.inference_mode()
    def encode_image_steps(self, image: ImagePart) -> Generator[int, None, list[LayerKV]]:
        """``encode_image`` that yields how many layers of the vision tower are done."""
        tiles = self.processor.tiles(image)
        if not isinstance(self.network, MllamaForConditionalGeneration):
            raise UsageError("This model is text-only: it cannot see images", "Use a Llama 3.2 Vision checkpoint.")
        if self.device.type == "cuda":
            return self.fast.encode_image(self.network, tiles.pixel_values, tiles.aspect_ratio_id)
        return (yield from self.network.model.encode_image_steps(tiles.pixel_values, tiles.aspect_ratio_id))

    def prepare_decoding(self, *, sees: bool, sampling: Sampling) -> Iterator[Event]:
        """Make ready what ``decode`` will need; yields a Notice where kernels have to be built first."""
        return self.fast.prepare(self.network, sees=sees, sampled=sampling.temperature > 0)

    @torch.inference_mode()
    def prepare_batch(self) -> Iterator[Event]:
        """A Notice where the first batch on this machine has to build kernels."""
        yield from self.fast.prepare_batch(self.network)

    def decode(
        self,
        logits: Tensor,
        cache: KVCache,
        cross: CrossKVCache | None,
        spans: Sequence[ImageSpan],
        sampling: Sampling,
        prompt: Sequence[int],
        budget: int,
    ) -> Generator[int]:
        """The answer's tokens, as engine/decoder.py's ``decode``; from captured graphs where the device has them."""
        return self.fast.decode(self.network, logits, cache, cross, spans, sampling, prompt, budget)

    @property
    def slower_because(self) -> str:
        """Why decoding takes plain torch operations; empty where it runs from captured graphs or on a CPU."""
        return self.fast.obstacle if self.device.type == "cuda" else ""

    def load_vision(self) -> Iterator[Event]:
        """Load the vision tower, the projector and the cross-attention layers."""
        return self.load_weights(vision=True)

    def load_weights(self, *, vision: bool = False) -> Iterator[Event]:
        """Load what is not there yet of the text part and, with ``vision``, of what images need; yields progress."""
        config = self.config.text_config
        parts = {"text", "vision"} if vision and self.can_see else {"text"}
        wanted = parts - self._loaded
        if not wanted:
            return
        names = [name for name in self._names if part(name, config) in wanted]
        total = sum(self._reader.tensors[name].nbytes for name in names)
        if self.plan is None:
            self.plan = self._planned(wanted)
            if self._narrowed:
                yield Notice("This GPU computes in no bfloat16: the model runs in float16")
        plan = self.plan
        sizes = Weights.of({name: self._bytes(name, self._reader.tensors[name].info) for name in names})
        check_fits(sizes.on_gpu(plan), self.device)
        if "vision" in wanted and plan.notice:
            yield Notice(plan.notice)
        if self.weights_dtype != self.dtype or self._is_packed():
            dispatch.prepare(self.device)
        done = 0
        modules = dict(self.network.named_modules())
        yield LoadProgress(0, total)
        for name, tensor in self._read(names, plan):
            if name == "lm_head.weight":
                tensor = tensor[: config.vocab_size]  # rows that people add for fine-tuning are never sampled
            owner, attribute = name.rpartition(".")[::2]
            if name.endswith(".weight") and owner in self._made:
                quantize_into(modules[owner], name, tensor.to(self.device), self._reader.tensors[name].file.name)
            else:
                value = self._placed(modules[owner], name, tensor, plan)
                modules[owner].register_parameter(attribute, nn.Parameter(value, requires_grad=False))
            if not (plan.tower_streamed and is_tower_layer(name)):  # which so far is only mapped
                done += self._reader.tensors[name].nbytes
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
                tower.join_projections()
        self._loaded.update(wanted)
        free = free_bytes(self.device) if self.device.type == "cuda" else 0
        self.work = work_sizes(self.config, self.dtype.itemsize, self.device.type, free)

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
            yield from self._reader.read(list(names))
            return
        from mllama_cli.checkpoint.upload import upload

        yield from self._reader.read([name for name in names if plan.on_host(name)])
        rest = [(name, self._reader.tensors[name]) for name in names if not plan.on_host(name)]
        yield from upload(rest, self.device)

    def _planned(self, wanted: set[str]) -> MemoryPlan:
        """For the whole model, also where only its text part is wanted now. MemoryShortageError where none will do."""
        if self.device.type != "cuda":
            return MemoryPlan()
        sizes = {name: self._bytes(name, self._reader.tensors[name].info) for name in self._names}
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
        return not self._tied and reads_host_memory(self.device)

    def _is_packed(self) -> bool:
        return any(isinstance(module, QuantizedLinear) for module in self.network.modules())

    def synchronize(self) -> None:
        """Wait for the GPU, so that times mean what they say."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _bytes(self, name: str, info: TensorInfo) -> int:
        """Bytes that loading takes. On a CPU, weights kept in their own format stay in the mapped file."""
        stored = STORED_DTYPES[info.dtype]
        if (scheme := self._made.get(name.removesuffix(".weight"))) is not None:
            rows, inputs = info.shape
            return rows * (4 * scheme.words(inputs) + stored.itemsize * scheme.groups(inputs))
        packed = name.rpartition(".")[2].startswith("weight_")
        if self.device.type == "cpu" and (packed or stored == self.weights_dtype):
            return 0
        return info.nbytes if packed else info.elements * self.weights_dtype.itemsize
