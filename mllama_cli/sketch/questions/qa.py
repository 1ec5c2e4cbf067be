"""A question with its answer, which every question builder returns."""

from dataclasses import dataclass, field
from typing import Any

from mllama_cli.sketch.language.wording import Ref


@dataclass(frozen=True)
class QA:
    """A question and its answer.

    Attributes:
        facts: what the answer must say, for grading: ``kind`` is the kind of question and decides the other keys.
        topic: what "it" means in the next question.
    """

    question: str
    answer: str
    facts: dict[str, Any] = field(default_factory=dict)
    topic: Ref | None = None
