"""Who answers conversations: an engine in this process, or a running one elsewhere. No front end knows which."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from mllama_cli.core.config import GenerationConfig, ImageProcessorConfig
from mllama_cli.core.conversation import Conversation, ImagePart
from mllama_cli.core.errors import UsageError
from mllama_cli.core.events import Event
from mllama_cli.core.sampling import Sampling


@dataclass(frozen=True)
class RawPrompt:
    """A prompt for a base model, verbatim and without the chat template.

    Images precede the text unless it has image tokens. The answer begins with ``prefill``.
    """

    text: str
    images: tuple[ImagePart, ...] = ()
    prefill: str = ""


Prompt = Conversation | RawPrompt


@dataclass(frozen=True)
class ModelInfo:
    """What a front end shows of a model, and what it needs in order to ask."""

    name: str
    """The name that the user gave, for messages, JSON and saved chats."""
    path: str
    """The model's folder, on the machine that runs it."""
    device: str
    """For example "cpu" or "cuda:0"."""
    dtype: str
    """For example "bfloat16"."""
    context: int
    """Tokens of a prompt and its answer together."""
    layers: int
    hidden_size: int
    generation: GenerationConfig
    """The checkpoint's own sampling defaults."""
    images: ImageProcessorConfig | None
    """How images are prepared; None for a text-only model."""
    has_template: bool = True
    """Whether there is a chat template; a base model takes raw prompts alone."""

    @property
    def has_vision(self) -> bool:
        return self.images is not None

    def require_images(self) -> ImageProcessorConfig:
        """Return how images are prepared. Raise UsageError if the model is text-only."""
        if self.images is None:
            raise text_only()
        return self.images


class AnswerSession(Protocol):
    """One live conversation: each turn may reuse what the turns before it left in caches."""

    def stream(self, prompt: Prompt, sampling: Sampling | None = None) -> Generator[Event]:
        """Yield the events of the answer, GenerationStats last; LoadProgress first if weights have to be loaded.

        Closing the generator stops the answer. Images may be decoded already (``processing.prepared``); their files'
        bytes are in ``data`` all the same. Raise MllamaError, with the same class for the same mistake wherever the
        engine runs.
        """
        ...

    def probabilities(self, prompt: Prompt, texts: Sequence[str]) -> Mapping[str, float]:
        """Return how likely each text is as the whole answer to a prompt, among these texts; they sum to 1.

        A text's probability is that of its tokens, each after those before it, and of the answer's end. If the prompt
        has the beginning of the answer, others have none. Raise MllamaError as ``stream`` does.
        """
        ...


class Answerer(Protocol):
    """A model that answers."""

    @property
    def about(self) -> ModelInfo: ...

    @property
    def fallback_reason(self) -> str:
        """Return why decoding on a GPU fell back to plain torch; empty if it did not, and on a CPU."""
        ...

    def load_weights(self, *, vision: bool = False) -> Iterator[Event]:
        """Load the weights for text and, with ``vision``, for images, unless loaded; yield progress."""
        ...

    def session(self) -> AnswerSession:
        """Begin a conversation."""
        ...


def text_only() -> UsageError:
    """Return the error for images given to a model without a vision tower."""
    return UsageError("This model is text-only: it cannot see images", "Use a Llama 3.2 Vision checkpoint.")
