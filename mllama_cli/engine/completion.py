"""An answer in progress: from token ids to text and a finish reason."""

from collections.abc import Container, Sequence

from mllama_cli.core.events import FinishReason
from mllama_cli.core.sampling import Sampling
from mllama_cli.processing.grammar import Constraint
from mllama_cli.processing.tokenizer import MllamaTokenizer, StreamingDetokenizer


class StopStrings:
    """Hold back text that may be the beginning of a stop string, and cut at the first one that is complete."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Return (text that is safe to show, whether a stop string is complete)."""
        if not self._stops:
            return text, False
        self._held += text
        found = [start for stop in self._stops if (start := self._held.find(stop)) >= 0]
        if found:
            shown, self._held = self._held[: min(found)], ""
            return shown, True
        keep = max(
            size
            for stop in self._stops
            for size in range(min(len(stop) - 1, len(self._held)), -1, -1)
            if self._held.endswith(stop[:size])
        )
        shown = self._held[: len(self._held) - keep]
        self._held = self._held[len(shown) :]
        return shown, False

    def finish(self) -> str:
        """Return the held text, which turned out not to be a stop string."""
        held, self._held = self._held, ""
        return held


class Completion:
    """An answer that grows token by token until ``finish_reason`` is set.

    Args:
        eos: ids that end an answer.
        room: tokens that the context leaves for the answer.
        prefill: what ``text`` begins with. Stop strings are not looked for in it.
        constraint: has taken note of each token before it is pushed. A whole answer is not cut, even if it has
            exactly the longest length.
    """

    def __init__(
        self,
        tokenizer: MllamaTokenizer,
        sampling: Sampling,
        eos: Container[int],
        room: int,
        prefill: str = "",
        constraint: Constraint | None = None,
    ) -> None:
        self.ids: list[int] = []
        self.text = prefill
        self.finish_reason: FinishReason | None = None
        self.budget = min(sampling.max_tokens, room)
        self._eos, self._constraint = eos, constraint
        self._detokenizer = StreamingDetokenizer(tokenizer)
        self._stops = StopStrings(sampling.stop)

    def push(self, token: int) -> str:
        """Add a chosen token; return the text to show now. An eos token appears in neither ids nor text."""
        if token in self._eos:
            self.finish_reason = "stop"
            piece = self._rest()
        else:
            self.ids.append(token)
            piece, stopped = self._stops.push(self._detokenizer.push(token))
            if stopped:
                self.finish_reason = "stop_string"
            elif len(self.ids) == self.budget:
                whole = self._constraint is not None and self._constraint.complete
                self.finish_reason = "stop" if whole else "length"
                piece += self._rest()
        self.text += piece
        return piece

    def _rest(self) -> str:
        """Return the held text at the end of an answer that no stop string ended."""
        text, stopped = self._stops.push(self._detokenizer.finish())
        return text if stopped else text + self._stops.finish()
