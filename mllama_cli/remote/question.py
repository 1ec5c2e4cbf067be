"""What a client asks a running engine, and what the engine says about itself: the bodies of the native endpoints."""

from dataclasses import dataclass

from mllama_cli.core.answerer import ModelInfo, RawPrompt
from mllama_cli.core.conversation import Conversation
from mllama_cli.core.sampling import Sampling

PROTOCOL = 1
"""Changes with the paths and the bodies below, so that versions that cannot talk to each other never meet."""

ANSWER_PATH = "/mllama/answer"
"""POST a Question; events come as lines of JSON, GenerationStats or an error last."""
CHOICES_PATH = "/mllama/choices"
"""POST Choices; Probabilities or an error come as a line of JSON."""
READY_PATH = "/mllama/ready"
"""POST a Use; events of loading come as lines of JSON, then the EngineInfo."""
ENGINE_PATH = "/mllama/engine"
"""GET the EngineInfo, which does not count as use."""
STOP_PATH = "/mllama/stop"
"""POST to end the engine in order, as SIGTERM does."""


@dataclass(frozen=True)
class Use:
    """A client that is about to ask.

    Attributes:
        keep_alive: seconds that the engine stays after its last use; None leaves that as it is.
        hold: keep the engine in use until the client closes the connection.
    """

    keep_alive: float | None = None
    hold: bool = False


@dataclass(frozen=True)
class Question:
    """One prompt. ``sampling`` None means the checkpoint's own."""

    prompt: RawPrompt | Conversation
    sampling: Sampling | None = None


@dataclass(frozen=True)
class Choices:
    """Texts as the whole answer to a prompt."""

    prompt: RawPrompt | Conversation
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Probabilities:
    """How likely each of some texts is, in their order."""

    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class EngineInfo:
    """What an engine is and does.

    Attributes:
        background: whether it was started for commands, instead of with `mllama serve`.
        quantization: as ollama names it, such as INT4 or BF16.
        memory: bytes of the device's memory that the process has.
        slots: answers at once.
        idle_left: seconds until it ends if nobody asks; None if it stays.
        address: where else it answers, as a URL; empty if only on its socket.
    """

    about: ModelInfo
    version: str
    protocol: int
    pid: int
    background: bool
    quantization: str
    memory: int
    slots: int
    running: int = 0
    waiting: int = 0
    idle_left: float | None = None
    address: str = ""
    fallback_reason: str = ""
