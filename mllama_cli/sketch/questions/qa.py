"""What every question builder returns."""

from dataclasses import dataclass, field
from typing import Any

from mllama_cli.sketch.language.wording import Ref


@dataclass(frozen=True)
class QA:
    """A question and its answer.

    Attributes:
        facts: what the answer must hold, for tests: ``kind`` names the kind of question, the rest depends on it.
        topic: what "it" would mean in the next question.
    """

    question: str
    answer: str
    facts: dict[str, Any] = field(default_factory=dict)
    topic: Ref | None = None
