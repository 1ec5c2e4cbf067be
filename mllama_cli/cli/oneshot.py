"""One answer on plain streams: status on stderr, the text (or one JSON object) on stdout."""

import json
from time import perf_counter
from typing import TYPE_CHECKING, Any

from mllama_cli.core.errors import MllamaError
from mllama_cli.core.events import GenerationStats, Notice, Token
from mllama_cli.terminal.answer_view import AnswerWriter, StatusLine, stats_line
from mllama_cli.terminal.console import Terminal

if TYPE_CHECKING:
    from mllama_cli.core.sampling import Sampling
    from mllama_cli.engine.engine import Engine
    from mllama_cli.processing.processor import ModelInputs


class OneAnswer:
    """Runs one prompt. With ``stream`` the text goes to stdout as it comes; ``text`` collects it in any case."""

    def __init__(self, terminal: Terminal, engine: "Engine", *, stream: bool) -> None:
        self.terminal = terminal
        self.engine = engine
        self.stream = stream
        self.text = ""
        self.notices: list[str] = []
        self.stats: GenerationStats | None = None
        self.interrupted = False
        self.load_seconds = 0.0

    def run(self, inputs: "ModelInputs", sampling: "Sampling") -> None:
        """Load what is needed and answer. Ctrl-C keeps what was said and sets ``interrupted``."""
        writer = AnswerWriter(self.terminal)
        try:
            with StatusLine(self.terminal) as status:
                start = perf_counter()
                for event in self.engine.load_weights(vision=bool(inputs.images)):
                    status.event(event)
                self.load_seconds = perf_counter() - start
                for event in self.engine.session().stream_inputs(inputs, sampling):
                    match event:
                        case Token(text=text):
                            status.clear()
                            self.text += text
                            if self.stream:
                                writer.write(text)
                        case GenerationStats():
                            self.stats = event
                        case Notice(text):
                            self.notices.append(text)
                            status.event(event)
                        case _:
                            status.event(event)
        except KeyboardInterrupt:
            self.interrupted = True
        except MllamaError:
            if writer.started:
                writer.finish()  # what went wrong begins on a line of its own
            raise
        if self.stream and (writer.started or self.stats):
            writer.finish()

    def print_text(self) -> None:
        """The whole answer at once."""
        writer = AnswerWriter(self.terminal)
        writer.write(self.text)
        writer.finish()

    def print_json(self) -> None:
        """One JSON object with everything a script may want to know."""
        stats = self.stats
        record: dict[str, Any] = {
            "model": self.engine.name,
            "answer": self.text,
            "finish_reason": stats.finish_reason if stats else "cancelled",
            "notices": self.notices,
        }
        if stats:
            record["usage"] = {
                "prompt_tokens": stats.prompt_tokens,
                "completion_tokens": stats.completion_tokens,
                "images": stats.images,
            }
            record["timings"] = {
                "load_seconds": round(self.load_seconds, 4),
                "encode_seconds": round(stats.encode_seconds, 4),
                "prefill_seconds": round(stats.prefill_seconds, 4),
                "decode_seconds": round(stats.decode_seconds, 4),
                "time_to_first_token": round(stats.time_to_first_token, 4),
                "tokens_per_second": round(stats.tokens_per_second, 2),
            }
        self.terminal.stdout.write(json.dumps(record, ensure_ascii=False) + "\n")
        self.terminal.stdout.flush()

    def say_why_it_ended(self, max_tokens: int) -> None:
        """An answer that was cut off is never cut silently."""
        if self.stats and self.stats.finish_reason == "length":
            count = self.stats.completion_tokens
            reason = (
                f"The answer was cut at {count} tokens (--max-tokens)."
                if count >= max_tokens
                else f"The answer was cut after {count} tokens: the model's context is full."
            )
            self.terminal.note(reason)

    def print_statistics(self) -> None:
        if self.engine.slower_because:
            self.terminal.note(f"Decoding takes plain torch, which is slower: {self.engine.slower_because}.")
        if self.stats:
            self.terminal.note(f"loaded in {self.load_seconds:.2f} s | {stats_line(self.stats)}")
