"""One answer in the making: tokens in, text and the reason why it ended out."""

from collections.abc import Container

from mllama_cli.core.events import FinishReason
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.completion import TextStream
from mllama_cli.processing.tokenizer import MllamaTokenizer


class Answer:
    """Grows token by token until ``push`` says why it is complete. ``room`` is what the context leaves for it."""

    def __init__(self, tokenizer: MllamaTokenizer, sampling: Sampling, eos: Container[int], room: int) -> None:
        self.ids: list[int] = []
        self.text = ""
        self._stream = TextStream(tokenizer, sampling.stop)
        self._eos = eos
        self._budget = min(sampling.max_tokens, room)

    def push(self, token: int) -> FinishReason | None:
        """Add a chosen token; the end-of-answer token itself belongs to neither text nor ids."""
        if token in self._eos:
            self.text += self._stream.finish()
            return "stop"
        self.ids.append(token)
        piece, stopped = self._stream.push(token)
        self.text += piece
        if stopped:
            return "stop_string"
        if len(self.ids) == self._budget:
            self.text += self._stream.finish()
            return "length"
        return None
