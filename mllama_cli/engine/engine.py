"""The public facade: load a checkpoint and answer with it."""

from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

from mllama_cli.core.answerer import ModelInfo, Prompt
from mllama_cli.core.conversation import Conversation
from mllama_cli.core.events import Event
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.batch.run import Reply, answer_batch
from mllama_cli.engine.model import LoadedModel
from mllama_cli.engine.parallel.crew import Crew
from mllama_cli.engine.session import Session
from mllama_cli.system.files import expanded


def load(
    model: str | Path | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    vision: bool = False,
    quantize: str | None = None,
    exact: bool = False,
    image_kv: str | None = None,
    fast: bool = False,
    adapters: str | Path | Sequence[str | Path] = (),
    progress: Callable[[Event], None] | None = None,
) -> "Engine":
    """Load a model: a folder, an installed model's name, an alias, or a hub id in the cache.

    None takes the only model that was downloaded or made here, or else the built-in one. Nothing is downloaded.
    Raise ModelNotFoundError, CheckpointError, DeviceError or MemoryShortageError.

    Args:
        device: "cuda:N" becomes the current CUDA device of each thread that uses the engine. Several, such as
            "cuda:0,cuda:1" or "cuda:all", share the model; a process is started for each but the first.
        vision: also load the weights for images, which otherwise load with the first image.
        quantize: "int4" or "int8" quantizes the language model while it loads.
        exact: do not round activations to 8 bits on a CPU for products with packed matrices.
        image_kv: "fp8" keeps the keys and values of images in 8 bits wherever several conversations are answered
            together (captions, a server); a session keeps them as they are.
        fast: encode images with float8 products where the GPU has them, which is faster and less accurate.
        adapters: folders of LoRA adapters that PEFT saved, merged into the weights one after the other.
        progress: called with each event of loading.
    """
    from mllama_cli.hub.catalog import default_model, resolve

    if model is None:
        entry = default_model()
        folder, name = entry.path, entry.name
    else:
        folder, name = resolve(str(model)), str(model)
    paths = [adapters] if isinstance(adapters, str | Path) else adapters
    engine = Engine(
        folder,
        name,
        device=device,
        dtype=dtype,
        quantize=quantize,
        exact=exact,
        image_kv=image_kv,
        fast=fast,
        adapters=[expanded(path) for path in paths],
        load_soon=True,
    )
    for event in engine.load_weights(vision=vision):
        if progress is not None:
            progress(event)
    return engine


class Engine:
    """A loaded model that answers conversations, made by ``load``. An ``Answerer``."""

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        device: str = "auto",
        dtype: str = "auto",
        quantize: str | None = None,
        exact: bool = False,
        image_kv: str | None = None,
        fast: bool = False,
        adapters: Sequence[Path] = (),
        meeting: Path | None = None,
        crew: Crew | None = None,
        load_soon: bool = False,
    ) -> None:
        self.path = folder
        self.name = name
        try:
            self.model = LoadedModel.from_folder(
                folder,
                device=device,
                dtype=dtype,
                quantize=quantize,
                exact=exact,
                image_kv=image_kv,
                fast=fast,
                adapters=adapters,
                meeting=meeting,
                crew=crew,
                load_soon=load_soon,
            )
        except BaseException:
            if crew is not None:
                crew.close()
            raise
        self.config, self.generation_config = self.model.config, self.model.generation_config
        self.network, self.processor = self.model.network, self.model.processor
        self.device, self.dtype = self.model.device, self.model.dtype
        self.has_vision = self.model.has_vision

    def load_weights(self, *, vision: bool = False) -> Iterator[Event]:
        """Load the weights for text and, with ``vision``, for images, unless loaded; yield progress."""
        return self.model.load(vision=vision)

    def default_sampling(self) -> Sampling:
        """Return the checkpoint's own sampling settings."""
        return self.model.default_sampling()

    def session(self) -> Session:
        """Begin a conversation that keeps its caches from turn to turn."""
        return Session(self.model)

    def stream(self, prompt: Prompt, sampling: Sampling | None = None) -> Generator[Event]:
        """Yield the events of one answer: Notice, EncodingImage, ReadingPrompt, Token ... and GenerationStats."""
        return self.session().stream(prompt, sampling)

    def answer_batch(self, conversations: Sequence[Conversation], sampling: Sampling | None = None) -> list[Reply]:
        """Answer several conversations together; their lengths and numbers of images may differ."""
        return answer_batch(self.model, conversations, sampling)

    def prepare_batch(self) -> Iterator[Event]:
        """Yield a Notice if the first batch on this machine has to build kernels."""
        return self.model.decoder.prepare_batch()

    @property
    def about(self) -> ModelInfo:
        """Return what front ends show of the model."""
        text = self.config.text_config
        return ModelInfo(
            name=self.name,
            path=str(self.path),
            device=",".join(map(str, self.model.devices)),
            dtype=str(self.dtype).removeprefix("torch."),
            context=text.max_position_embeddings,
            layers=text.num_hidden_layers,
            hidden_size=text.hidden_size,
            generation=self.generation_config,
            images=self.processor.require_vision().config if self.has_vision else None,
            has_template=self.processor.chat_template is not None,
        )

    @property
    def fallback_reason(self) -> str:
        """Why decoding on a GPU fell back to plain torch; empty if it did not, and on a CPU."""
        return self.model.decoder.fallback_reason
