"""The parts of answers: text, tokens with log-probabilities, why an answer ended, and what it used."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mllama_cli.core.events import Event, GenerationStats, Token
from mllama_cli.serving.tokens import FINISH_REASONS


@dataclass
class Piece:
    """What came of one answer since the last piece. ``finish_reason`` is set in the last one."""

    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    finish_reason: str | None = None

    def add(self, event: Event) -> None:
        if isinstance(event, Token):
            self.text += event.text
            if event.logprob is not None:
                self.tokens.append(event)
        elif isinstance(event, GenerationStats):
            self.finish_reason = FINISH_REASONS[event.finish_reason]


def pieces_of(batch: Iterable[tuple[int, Event]]) -> dict[int, Piece]:
    """Return one piece for each answer in a batch of events."""
    pieces: dict[int, Piece] = {}
    for index, event in batch:
        pieces.setdefault(index, Piece()).add(event)
    return pieces


def usage_of(stats: Mapping[int, GenerationStats], n: int) -> dict[str, Any]:
    """Return the tokens of all answers. The prompt of ``n`` answers to the same prompt counts once."""
    prompts = [each for index, each in stats.items() if index % n == 0]
    prompt = sum(each.prompt_tokens for each in prompts)
    completion = sum(each.completion_tokens for each in stats.values())
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(each.cached_tokens for each in prompts)},
    }
