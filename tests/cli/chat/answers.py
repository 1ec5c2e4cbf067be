"""Ask `mllama chat`, and an engine what it must answer."""

from pathlib import Path

from mllama_cli.core.conversation import Conversation, ImagePart
from mllama_cli.core.events import Token
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.engine import Engine
from tests.console import Result, run_here


def expected(
    engine: Engine, text: str, *images: Path, system: str = "", count: int = 12, sampling: Sampling | None = None
) -> str:
    parts = tuple(ImagePart(image.read_bytes()) for image in images)
    events = engine.stream(Conversation.ask(text, parts, system), sampling or Sampling(max_tokens=count))
    return "".join(event.text for event in events if isinstance(event, Token)).rstrip("\n") + "\n"


def chat(*arguments: str, stdin: bytes | None = None, count: int = 12) -> Result:
    return run_here("chat", "--max-tokens", str(count), "--device", "cpu", *arguments, stdin=stdin)
