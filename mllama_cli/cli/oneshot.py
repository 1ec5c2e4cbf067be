"""Answer one question: the text or one JSON object on stdout, status on stderr."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import typer

from mllama_cli.cli.common import ExitStatus, print_json, usage_fields
from mllama_cli.core.events import FinishReason
from mllama_cli.hub.catalog import is_built_in
from mllama_cli.terminal.answer_view import AnswerView, AnswerWriter, stats_line
from mllama_cli.terminal.console import Terminal

if TYPE_CHECKING:
    from mllama_cli.chat.storage.saved import SavedChat
    from mllama_cli.cli.chat_request import ChatRequest
    from mllama_cli.cli.question import Question
    from mllama_cli.core.answerer import Answerer, Prompt
    from mllama_cli.core.conversation import Conversation
    from mllama_cli.core.sampling import Sampling

NO_DRAWING_NOTE = (
    "The built-in model knows only drawings: without an image, an answer that must have a form is made up."
    " Give one with -i, or use a real model: mllama download 11b"
)


def run_question(
    terminal: Terminal, engine: "Answerer", request: "ChatRequest", question: "Question", saved: "SavedChat | None"
) -> None:
    """Answer one question and save it, in the chat that it continues if there is one. Raise typer.Exit after Ctrl-C."""
    output, sampling = request.output, request.sampling_for(engine, question.sampling)
    if sampling.grammar is not None and not question.images and is_built_in(engine.about.name):
        terminal.note(NO_DRAWING_NOTE)
    answer = OneAnswer(terminal, engine, stream=not (output.no_stream or output.as_json))
    answer.run(question.prompt, sampling)
    if output.as_json:
        choices = sampling.grammar.texts if sampling.grammar is not None and not answer.interrupted else ()
        answer.print_json(answer.session.probabilities(question.prompt, choices) if choices else None)
    elif output.no_stream:
        answer.print_text()
    answer.say_why_it_ended(sampling)
    if request.verbose:
        answer.print_statistics()
    if question.conversation is not None and answer.text:
        whole = question.conversation.with_assistant(answer.text)
        if request.saves_question(terminal, continued=saved is not None):
            from mllama_cli.chat.storage.saved import SavedChat

            _save(terminal, saved or SavedChat.new(engine.about.name), whole)
    if answer.interrupted:
        raise typer.Exit(ExitStatus.INTERRUPTED)
    if sampling.grammar is not None and not answer.whole:
        raise typer.Exit(ExitStatus.FAILURE)


def say_what_continues(terminal: Terminal, saved: "SavedChat") -> None:
    """Say on stderr which chat a question continues, as the last one need not be the one that is meant."""
    from mllama_cli.chat.storage.saved import now

    count = len(saved.conversation.messages)
    minutes = max(0, round((now() - saved.updated).total_seconds() / 60))
    age = f"{minutes} min" if minutes < 100 else f"{minutes // 60} h" if minutes < 3000 else f"{minutes // 1440} days"
    name = f"{saved.id} ({saved.name})" if saved.name else str(saved.id)
    terminal.note(f'Continuing {name} "{saved.title}" ({count} message{"s" * (count != 1)}, {age} ago)')


def _save(terminal: Terminal, chat: "SavedChat", whole: "Conversation") -> None:
    """Save the chat. A new one that cannot be saved costs a note, not the answer's exit code."""
    from mllama_cli.chat.autosave import note_fork
    from mllama_cli.chat.storage.store import ChatStore
    from mllama_cli.core.errors import MllamaError

    try:
        note_fork(terminal, chat, ChatStore().save(chat, whole))
    except MllamaError as error:
        if chat.id:
            raise
        terminal.note(f"This question was not saved: {error.message}")


class OneAnswer(AnswerView):
    """Runs one prompt. ``stream`` prints the text as it arrives; ``text`` collects it either way."""

    def __init__(self, terminal: Terminal, engine: "Answerer", *, stream: bool) -> None:
        super().__init__(terminal, AnswerWriter(terminal) if stream else None)
        self.engine, self.session = engine, engine.session()
        self.load_seconds = 0.0

    def run(self, prompt: "Prompt", sampling: "Sampling") -> None:
        """Load the weights and answer. Ctrl-C keeps the partial answer and sets ``interrupted``."""
        self.show(self.session.stream(prompt, sampling))
        if self.stats is not None:  # times count from when the model is there
            self.load_seconds, self.stats = self.stats.load_seconds, replace(self.stats, load_seconds=0.0)

    def print_text(self) -> None:
        """Print the whole answer at once."""
        writer = AnswerWriter(self.terminal)
        writer.write(self.text)
        writer.finish()

    @property
    def whole(self) -> bool:
        """Whether the model ended the answer, rather than a limit or a stop string."""
        return self.stats is not None and self.stats.finish_reason == "stop"

    def print_json(self, probabilities: Mapping[str, float] | None = None) -> None:
        """Print one JSON object: answer, token counts, timings, and ``probabilities`` of choices."""
        stats = self.stats
        reason: FinishReason = stats.finish_reason if stats else "cancelled"
        record: dict[str, Any] = {
            "model": self.engine.about.name,
            "text": self.text,
            "answer": self.text,  # the earlier name
            "finish_reason": reason,
            "notices": self.notices,
        }
        if probabilities is not None:
            record["probabilities"] = probabilities
        if stats:
            record["usage"] = usage_fields(stats.prompt_tokens, stats.completion_tokens, stats.images)
            record["seconds"] = round(stats.time_to_first_token + stats.decode_seconds, 3)
            record["timings"] = {
                "load_seconds": round(self.load_seconds, 4),
                "encode_seconds": round(stats.encode_seconds, 4),
                "prefill_seconds": round(stats.prefill_seconds, 4),
                "decode_seconds": round(stats.decode_seconds, 4),
                "time_to_first_token": round(stats.time_to_first_token, 4),
                "tokens_per_second": round(stats.tokens_per_second, 2),
            }
        print_json(self.terminal, record)

    def say_why_it_ended(self, sampling: "Sampling") -> None:
        """Report an answer that hit a limit or, where it had to have a form, is not whole."""
        if sampling.grammar is not None and self.stats and not self.whole:
            cut = (
                f"at {self.stats.completion_tokens} tokens"
                if self.stats.finish_reason == "length"
                else "by a stop text"
            )
            self.terminal.error(
                f"The answer was cut {cut}, so it is not {sampling.grammar.what}",
                "Raise --max-tokens, or ask for less: a schema can limit texts (maxLength) and lists (maxItems)."
                if self.stats.finish_reason == "length"
                else "Leave out --stop.",
            )
        elif self.stats and self.stats.finish_reason == "length":
            count = self.stats.completion_tokens
            reason = (
                f"The answer was cut at {count} tokens (--max-tokens)."
                if count >= sampling.max_tokens
                else f"The answer was cut at {count} tokens: the model's context is full."
            )
            self.terminal.note(reason)

    def print_statistics(self) -> None:
        if self.engine.fallback_reason:
            self.terminal.note(f"Falling back to PyTorch for decoding (slower): {self.engine.fallback_reason}.")
        if self.stats:
            self.terminal.note(f"loaded in {self.load_seconds:.2f} s | {stats_line(self.stats)}")
