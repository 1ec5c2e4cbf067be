"""Ids to text: stop strings, and characters whose bytes come in several tokens."""

from collections.abc import Sequence

from mllama_cli.processing.tokenizer import MllamaTokenizer, StreamingDetokenizer


class StopStrings:
    """Holds back text that may be the beginning of a stop string, and cuts at the first one that is whole."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """(text that is safe to show, whether a stop string was met)."""
        if not self._stops:
            return text, False
        self._held += text
        places = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if places:
            shown, self._held = self._held[: min(places)], ""
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
        """What was held back and turned out to be no stop string."""
        held, self._held = self._held, ""
        return held


class TextStream:
    """Token ids of one answer in, text out."""

    def __init__(self, tokenizer: MllamaTokenizer, stops: Sequence[str] = ()) -> None:
        self._detokenizer = StreamingDetokenizer(tokenizer)
        self._stops = StopStrings(stops)

    def push(self, token_id: int) -> tuple[str, bool]:
        """(text to show now, whether a stop string ended the answer)."""
        return self._stops.push(self._detokenizer.push(token_id))

    def finish(self) -> str:
        """The rest of the text when the answer ends for another reason than a stop string."""
        text, stopped = self._stops.push(self._detokenizer.finish())
        return text if stopped else text + self._stops.finish()
