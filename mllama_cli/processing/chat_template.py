"""The checkpoint's own Jinja chat template."""

import json
import subprocess
import threading
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mllama_cli.core.conversation import Conversation, ImagePart, Message, TextPart
from mllama_cli.core.errors import COPY_AGAIN, CheckpointError, TemplateError, UsageError
from mllama_cli.core.tool_calls import ToolCall
from mllama_cli.processing.worker_process import end_worker, start_worker
from mllama_cli.system.files import is_file
from mllama_cli.system.json_file import parse_json, read_json
from mllama_cli.system.text_file import read_text

TemplateMessage = dict[str, Any]

OUR_TEMPLATE = Path(__file__).with_name("llama_3_2_vision.jinja")
"""Our own writing of the released models' template, for models that come without one."""

TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")

MAX_SOURCE = 2**20
"""Characters of a template; the released one has 5,000."""
MAX_OVERHEAD = 2**20
"""Characters of a prompt beyond four times those of the conversation."""
MAX_MEMORY = 2**30
RENDER_SECONDS = 10.0

_WITHOUT = "Use --raw to go without it."


class RefusedError(TemplateError):
    """The template itself called raise_exception on this conversation."""


class ChatTemplate:
    """One template, with ``variables`` for it (bos_token, ...).

    It is rendered in a process of its own under limits of time and memory (template_worker.py), which starts with the
    first conversation, or ahead of it by ``start``, and ends with this object.
    """

    def __init__(
        self, source: str, variables: Mapping[str, str] | None = None, seconds: float = RENDER_SECONDS
    ) -> None:
        self.source = source
        self.variables = dict(variables or {})
        self._seconds = seconds
        self._worker: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    @classmethod
    def from_pretrained(cls, folder: Path, variables: Mapping[str, str] | None = None) -> "ChatTemplate | None":
        """Return the template of a checkpoint folder, or None for a base model.

        Reads the first of chat_template.jinja, chat_template.json and tokenizer_config.json, as transformers does.
        Raises CheckpointError for a file that is damaged, too large or not UTF-8.
        """
        source: Any = None
        path, *configs = (folder / name for name in TEMPLATE_FILES)
        if is_file(path):
            source = read_text(path, error=CheckpointError, hint=COPY_AGAIN, pipes=False)
        elif config := next((file for file in configs if is_file(file)), None):
            path = config
            source = read_json(config).get("chat_template")
        if isinstance(source, list):  # several named templates
            named = [entry for entry in source if isinstance(entry, dict) and entry.get("name") == "default"]
            source = named[0].get("template") if named else None
        if not isinstance(source, str) or not source.strip():
            return None
        if len(source) > MAX_SOURCE:
            raise CheckpointError(f"The chat template in {path} has {len(source)} characters, as none has", COPY_AGAIN)
        return cls(source, variables)

    def render(self, messages: Sequence[TemplateMessage], **variables: Any) -> str:
        """Return the prompt for messages in transformers' form, up to the start of the answer.

        Raises RefusedError if the template refuses the conversation, TemplateError if it fails or breaks a limit.
        """
        given = {**self.variables, **variables, "messages": list(messages), "add_generation_prompt": True}
        request = json.dumps(given)
        request = json.dumps({**given, "max_length": MAX_OVERHEAD + 4 * len(request)})
        with self._lock:
            reply = self._ask(request)
        if reply is None:
            raise TemplateError(
                f"The chat template takes more than {self._seconds:g} seconds or too much memory", _WITHOUT
            )
        kind, message = reply.get("error"), reply.get("message", "")
        if kind == "refused":
            raise RefusedError(f"The chat template refuses this conversation: {message}")
        if kind == "unsafe":
            raise TemplateError(f"The chat template does something unsafe: {message}", "Do not use this model.")
        if kind == "no_bos":
            raise TemplateError(
                "The chat template writes bos_token, but no file of the model says which token that is",
                "Copy tokenizer_config.json or special_tokens_map.json from the original model.",
            )
        if kind is not None:
            what = "cannot be parsed" if kind == "parse" else "failed"
            raise TemplateError(f"The chat template {what}: {message}", _WITHOUT)
        if not reply["text"]:
            raise TemplateError("The chat template makes an empty prompt of this conversation", _WITHOUT)
        return reply["text"]

    def _ask(self, request: str) -> dict[str, str] | None:
        """Return the worker's answer; None if it was killed. No worker survives an interrupted request."""
        worker = self._worker or self._started()
        watch = threading.Timer(self._seconds + 1, worker.kill)  # after the worker's own limit
        watch.start()
        try:
            assert worker.stdin is not None
            assert worker.stdout is not None
            worker.stdin.write(request.encode() + b"\n")
            worker.stdin.flush()
            line = worker.stdout.readline()
            reply: dict[str, str] = json.loads(line)
        except (OSError, ValueError):
            self._stop()
            return None
        except BaseException:  # Ctrl-C
            self._stop()
            raise
        finally:
            watch.cancel()
        return reply

    def start(self) -> None:
        """Start the process, which takes a moment until it can render. An error is the first conversation's."""
        with self._lock, suppress(OSError):
            if self._worker is None:
                self._started()

    def _started(self) -> "subprocess.Popen[bytes]":
        worker = start_worker("template_worker.py")
        self._worker = worker
        self._finalizer = weakref.finalize(self, end_worker, worker)
        assert worker.stdin is not None
        with suppress(OSError):  # a worker that could not start is reported by the first answer
            first = {"source": self.source, "seconds": self._seconds, "memory": MAX_MEMORY}
            worker.stdin.write(json.dumps(first).encode() + b"\n")
        return worker

    def _stop(self) -> None:
        if self._worker is not None:
            self._finalizer()
            self._worker = None


def template_messages(conversation: Conversation) -> list[TemplateMessage]:
    """Return messages in transformers' form: content is a string, or a list of parts if there are images.

    Calls are like OpenAI's, with the arguments as an object if they are JSON.
    """
    return [{"role": message.role, "content": _content(message), **_tool_fields(message)} for message in conversation]


def _tool_fields(message: Message) -> TemplateMessage:
    # Templates ask whether a key is there, so an empty one must not be.
    fields = {
        "tool_calls": [_call(call) for call in message.tool_calls],
        "name": message.name,
        "tool_call_id": message.call_id,
    }
    return {key: value for key, value in fields.items() if value}


def _call(call: ToolCall) -> TemplateMessage:
    fields = call.as_dict()
    with suppress(UsageError):  # models write arguments that are cut short, too
        fields["function"]["arguments"] = parse_json(call.arguments.encode(errors="replace"), call.name)
    return fields


def fold_system(conversation: Conversation) -> Conversation:
    """Return the conversation with its system text at the start of the first user message's text."""
    system = "\n\n".join(m.text for m in conversation if m.role == "system")
    rest = [m for m in conversation if m.role != "system"]
    for index, message in enumerate(rest):
        if message.role == "user":
            parts = list(message.parts)
            for position, part in enumerate(parts):
                if isinstance(part, TextPart):
                    parts[position] = TextPart(f"{system}\n\n{part.text}")
                    break
            else:
                parts.append(TextPart(system))
            rest[index] = Message("user", tuple(parts))
            break
    return Conversation(tuple(rest))


def _content(message: Message) -> str | list[dict[str, str]]:
    if not message.images:
        return message.text
    return [
        {"type": "image"} if isinstance(part, ImagePart) else {"type": "text", "text": part.text}
        for part in message.parts
    ]
