"""A checkpoint folder -> an Engine: network and processor, ready to answer."""

from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

import torch

from mllama_cli.core.config import GenerationConfig, MllamaConfig
from mllama_cli.core.conversation import Conversation, ImagePart
from mllama_cli.core.errors import UsageError
from mllama_cli.core.events import Event
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.batch.run import Reply, answer_batch
from mllama_cli.engine.device import choose_device, make_current
from mllama_cli.engine.fast import FastDecoding
from mllama_cli.engine.forward import DecodeInput, Network
from mllama_cli.engine.sampling import ChosenToken
from mllama_cli.engine.session import Session
from mllama_cli.engine.weights.place import StoredWeights
from mllama_cli.model.cache import LayerKV
from mllama_cli.model.layers import result_of, set_exact
from mllama_cli.model.mllama import MllamaForConditionalGeneration, empty_network
from mllama_cli.processing.processor import MllamaProcessor
from mllama_cli.system.json_file import read_json


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
    ``quantize``, "int4" or "int8", makes the language model small while it loads. ``exact`` keeps
    activations in their precision, which a CPU rounds to 8 bits for products with packed matrices otherwise.
    ``device`` "cuda:N" becomes the current CUDA device of each thread that asks the engine.
    Raises ModelNotFoundError, CheckpointError, DeviceError or MemoryShortageError.
    """
    from mllama_cli.hub.catalog import default_model, resolve

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
        self.path = folder
        self.name = name
        raw = read_json(folder / "config.json")
        self.config = MllamaConfig.from_dict(raw)
        generation = folder / "generation_config.json"
        self.generation_config = GenerationConfig.from_dict(read_json(generation) if generation.is_file() else {})
        self.eos = frozenset(self.generation_config.eos_token_id or self.config.text_config.eos_token_id)
        self.can_see = self.config.vision_config is not None
        self.device = choose_device(device)
        make_current(self.device)
        self.network: Network = empty_network(self.config)
        self.weights = StoredWeights(folder, raw, self.config, self.network, self.device, dtype, quantize)
        set_exact(self.network, exact)
        self.dtype = self.weights.dtype
        self.processor = MllamaProcessor.from_pretrained(folder, self.config.image_token_index, vision=self.can_see)
        self.fast = FastDecoding(self.dtype, self.device)

    @property
    def sees(self) -> bool:
        """Whether what images need is in memory."""
        return "vision" in self.weights.loaded

    @property
    def prefill_rows(self) -> int:
        """Rows of a prompt that go through the network at once in the memory that is left."""
        return self.weights.prefill_rows

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
        return self.fast.prepare(self.network, sees=sees, sampling=sampling)

    @torch.inference_mode()
    def prepare_batch(self) -> Iterator[Event]:
        """A Notice where the first batch on this machine has to build kernels."""
        yield from self.fast.prepare_batch(self.network)

    def decode(self, start: DecodeInput) -> Generator[ChosenToken]:
        """The answer's tokens, as engine/forward.py's ``decode``; from captured graphs where the device has them."""
        return self.fast.decode(self.network, start)

    @property
    def slower_because(self) -> str:
        """Why decoding takes plain torch operations; empty where it runs from captured graphs or on a CPU."""
        return self.fast.obstacle if self.device.type == "cuda" else ""

    def load_vision(self) -> Iterator[Event]:
        """Load the vision tower, the projector and the cross-attention layers."""
        return self.load_weights(vision=True)

    def load_weights(self, *, vision: bool = False) -> Iterator[Event]:
        """Load what is not there yet of the text part and, with ``vision``, of what images need; yields progress."""
        return self.weights.load(vision=vision)

    def synchronize(self) -> None:
        """Wait for the GPU, so that times mean what they say."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
