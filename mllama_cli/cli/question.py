"""Build the question of `mllama chat` from arguments, files and stdin, checked before any model is loaded."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from mllama_cli.core.answerer import Prompt, RawPrompt
from mllama_cli.core.conversation import Conversation, ImagePart, Message, TextPart
from mllama_cli.core.errors import UsageError
from mllama_cli.core.selection import split_selection
from mllama_cli.system.files import expanded, is_file
from mllama_cli.system.patterns import has_source_name
from mllama_cli.system.text_file import MAX_PROMPT_BYTES, decode, read_stream
from mllama_cli.terminal.console import Terminal

if TYPE_CHECKING:
    from mllama_cli.cli.chat_request import ChatInput
    from mllama_cli.processing.messages import MessagesRequest


@dataclass(frozen=True)
class Question:
    """A conversation for the chat template, or raw text and images for a base model.

    ``sampling`` has the parameters that the request in a file of --messages sets.
    """

    conversation: Conversation | None = None
    raw_text: str = ""
    raw_images: tuple[ImagePart, ...] = ()
    sampling: Mapping[str, Any] = field(default_factory=dict)

    @property
    def images(self) -> tuple[ImagePart, ...]:
        return self.conversation.images if self.conversation is not None else self.raw_images

    def prepared(self, folder: Path) -> "Question":
        """Decode each image for the model in ``folder``.

        Needs no torch, so that a broken image is reported before 20 GB of weights are read. Raise ImageError,
        UsageError if the model is text-only, CheckpointError.
        """
        if not self.images:
            return self
        from mllama_cli.processing.decoding import decode_image, expect_images

        expect_images(self.images)
        from mllama_cli.processing.prepared import image_config_of

        config = image_config_of(folder)
        if self.conversation is not None:
            return replace(self, conversation=self.conversation.with_images(lambda part: decode_image(part, config)))
        return replace(self, raw_images=tuple(decode_image(part, config) for part in self.raw_images))

    @property
    def prompt(self) -> Prompt:
        return RawPrompt(self.raw_text, self.raw_images) if self.conversation is None else self.conversation


def build_question(asked: "ChatInput", terminal: Terminal, *, before: Conversation | None = None) -> Question:
    """Read and check everything but the contents of images. Raise UsageError, ImageError or DownloadError.

    ``before`` is the saved chat that the question continues.
    """
    messages, system, raw = asked.messages, asked.system, asked.raw
    words, images = _words(asked.words or []), [split_selection(source)[0] for source in asked.image or []]
    if before is not None and (messages is not None or raw):
        raise UsageError(
            "A saved chat continues with a question, not with --messages or --raw", "Leave one of them out."
        )
    stdin_wanted = [source for source in (*images, messages) if source == "-"]
    if len(stdin_wanted) > 1:
        raise UsageError("Only one of --image and --messages can read stdin (-)", "Save the others to files.")
    if stdin_wanted and asked.no_stdin:
        raise UsageError("- reads stdin, which --no-stdin forbids", "Leave one of them out.")
    if messages is not None:
        if system or raw:
            raise UsageError("--messages is a conversation: it takes no --system or --raw", "Put it into the file.")
        request = _request(messages, terminal)
        text = "\n\n".join(part for part in (asked.prompt or "", " ".join(words)) if part.strip())
        conversation = _with_next(request.conversation, text, read_images(asked, terminal), messages)
        if conversation.prefill and asked.prefill:
            raise UsageError(
                f"--messages {messages} ends with the beginning of an answer, and so does --prefill",
                "Leave one of them out.",
            )
        return Question(conversation.with_prefill(asked.prefill or ""), sampling=request.sampling)

    parts = [_piped_text(terminal)] if not (asked.no_stdin or stdin_wanted) else []
    parts += [asked.prompt or "", " ".join(words)]
    text = "\n\n".join(part for part in parts if part.strip())
    attached = read_images(asked, terminal)
    if not text and not attached:
        raise UsageError(
            "There is nothing to ask: no prompt, no image and no text on stdin",
            'Try: mllama chat --image photo.jpg "What is this?"',
        )
    if raw:
        if system or asked.prefill:
            flag = "--system" if system else "--prefill"
            raise UsageError(f"--raw has no place for {flag}", "Write it into the prompt.")
        return Question(raw_text=text, raw_images=attached)
    if not text:
        from mllama_cli.chat.dialogue import default_question

        text = default_question(len(attached))
        terminal.note(f"No question given, so: {text}")
    conversation = _after(before or Conversation(), system).with_user(text, attached)
    return Question(conversation.with_prefill(asked.prefill or ""))


def _after(before: Conversation, system: str | None) -> Conversation:
    """Return the conversation so far, with its system message replaced if ``system`` is given."""
    if not system:
        return before
    others = tuple(message for message in before if message.role != "system")
    return Conversation((Message("system", (TextPart(system),)), *others))


def _with_next(conversation: Conversation, text: str, images: tuple[ImagePart, ...], source: str) -> Conversation:
    """Return a conversation from a file, which ends with a question or gets the command line's, not both.

    One that ends with the assistant is to be gone on with, unless the command line asks the next question.
    """
    given = bool(text or images)
    if given and conversation.messages[-1].role == "user":
        raise UsageError(f"--messages {source} already ends with a question", "Leave out the one on the command line.")
    if not given:
        try:
            conversation.require_answerable()
        except UsageError as error:
            raise UsageError(
                f"--messages {source}: {error.message}",
                f'Add the next question: mllama chat --messages {shlex.quote(source)} "..."',
            ) from error
        return conversation
    from mllama_cli.chat.dialogue import default_question

    return conversation.with_user(text or default_question(len(images)), images)


def _words(words: Sequence[str]) -> Sequence[str]:
    # `-i *.jpg` gives only the first image to -i; the others arrive as words.
    for word in words:
        if has_source_name(word) and (is_file(expanded(word)) or is_file(expanded(split_selection(word)[0]))):
            raise UsageError(
                f"{word} is an image, but it is where the question goes",
                f"Write -i before each image (-i {word}), or quote the pattern: -i '*.jpg'",
            )
    return words


def _binary_stdin(terminal: Terminal) -> BinaryIO:
    return terminal.stdin.buffer


def _piped_text(terminal: Terminal) -> str:
    if terminal.stdin is None or terminal.stdin.closed or terminal.stdin_is_tty:
        return ""
    data = read_stream(_binary_stdin(terminal), "stdin", limit=MAX_PROMPT_BYTES)
    hint = "For an image on stdin use --image - ; else convert the text."
    return decode(data, "stdin", hint=hint).rstrip("\r\n")


def read_images(asked: "ChatInput", terminal: Terminal) -> tuple[ImagePart, ...]:
    """Return the images named on the command line, not yet decoded, but pages of documents already drawn."""
    from mllama_cli.processing.limits import MAX_IMAGES

    read: list[ImagePart] = []
    kinds = set()
    if sources := asked.image or []:
        from mllama_cli.chat.image_sources import expand_patterns
        from mllama_cli.processing.documents import Excerpt, read_source, split_source

        excerpt = Excerpt(asked.pages or "", asked.frames)
        for source in expand_patterns(sources):
            stdin = split_source(source)[0] == "-"
            if stdin and terminal.stdin_is_tty:
                raise UsageError(
                    "--image - reads an image from stdin, but stdin is the terminal", "Pipe one in: ... | mllama"
                )
            found = read_source(
                source, _binary_stdin(terminal) if stdin else None, excerpt=excerpt, room=MAX_IMAGES - len(read)
            )
            read += found.images
            kinds.add(found.kind)
    if asked.pages is not None and "pdf" not in kinds:
        raise UsageError("--pages is for PDF documents, and there is none", "Name one: -i report.pdf --pages 2-4")
    if asked.frames is not None and "video" not in kinds:
        raise UsageError(
            "--frames is for videos and animations, and there is none",
            f"Name one: -i clip.mp4 --frames {asked.frames}, or -i anim.gif#all",
        )
    return tuple(read)


def _request(source: str, terminal: Terminal) -> "MessagesRequest":
    from mllama_cli.processing.messages import load_request

    if source == "-" and terminal.stdin_is_tty:
        raise UsageError("--messages - reads JSON from stdin, but stdin is the terminal", "Pipe it in, or name a file.")
    request = load_request(source, _binary_stdin(terminal) if source == "-" else None, to_answer=False)
    if request.ignored:
        terminal.note(f"--messages {source}: without effect here: {', '.join(request.ignored)}.")
    return request
