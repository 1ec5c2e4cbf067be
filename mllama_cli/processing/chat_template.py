"""The checkpoint's own Jinja chat template, rendered in a sandbox."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError as JinjaError
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mllama_cli.core.conversation import Conversation, ImagePart, Message, TextPart
from mllama_cli.core.errors import COPY_AGAIN, CheckpointError, TemplateError
from mllama_cli.system.json_file import read_json
from mllama_cli.system.text_file import read_text

TemplateMessage = dict[str, Any]

TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")


class RefusedError(TemplateError):
    """The template itself called raise_exception on this conversation."""


class ChatTemplate:
    """One template, with ``variables`` for it (bos_token, ...)."""

    def __init__(self, source: str, variables: Mapping[str, str] | None = None) -> None:
        self.source = source
        self.variables = dict(variables or {})

    @classmethod
    def from_pretrained(cls, folder: Path, variables: Mapping[str, str] | None = None) -> "ChatTemplate | None":
        """Return the template of a checkpoint folder, or None for a base model.

        Reads the first of chat_template.jinja, chat_template.json and tokenizer_config.json, as transformers does.
        """
        source: Any = None
        jinja, *configs = (folder / name for name in TEMPLATE_FILES)
        if jinja.is_file():
            source = read_text(jinja, error=CheckpointError, hint=COPY_AGAIN, pipes=False)
        elif config := next((file for file in configs if file.is_file()), None):
            source = read_json(config).get("chat_template")
        if isinstance(source, list):  # several named templates
            named = {entry.get("name"): entry.get("template") for entry in source}
            source = named.get("default")
        return cls(source, variables) if isinstance(source, str) and source.strip() else None

    @cached_property
    def _template(self) -> Any:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            return environment.from_string(self.source)
        except JinjaError as error:
            raise TemplateError(
                f"The chat template cannot be parsed: {error}", "Use --raw to go without it."
            ) from error

    def render(self, messages: Sequence[TemplateMessage], **variables: Any) -> str:
        """Return the prompt for messages in transformers' form, up to the start of the answer.

        Raises RefusedError if the template refuses the conversation.
        """
        try:
            text: str = self._template.render(
                messages=list(messages), add_generation_prompt=True, **{**self.variables, **variables}
            )
        except RefusedError:
            raise
        except SecurityError as error:
            raise TemplateError(
                f"The chat template does something unsafe: {error}", "Do not use this model."
            ) from error
        except (JinjaError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            raise TemplateError(f"The chat template failed: {error}", "Use --raw to go without it.") from error
        return text


def template_messages(conversation: Conversation) -> list[TemplateMessage]:
    """Return messages in transformers' form: content is a string, or a list of parts if there are images."""
    return [{"role": message.role, "content": _content(message)} for message in conversation]


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


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    # Jinja's own filter escapes <, > and & for HTML, which would change the prompt.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _refuse(message: str) -> NoReturn:
    raise RefusedError(f"The chat template refuses this conversation: {message}")
