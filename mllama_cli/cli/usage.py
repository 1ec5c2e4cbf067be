"""Say in two lines what is wrong with a command line: the mistake, and a command that works."""

import re
import shlex
from collections.abc import Iterable
from typing import Any

from mllama_cli.core.errors import UsageError
from mllama_cli.core.text import one_line, suggest
from mllama_cli.system.patterns import has_source_name

OTHER_NAMES = {
    "models": "list",
    "remove": "rm",
    "delete": "rm",
    "info": "show",
    "inspect": "show",
    "ask": "chat",
    "settings": "config",
    "set": "config set",
    "get": "download",
    "install": "download",
    "convert": "quantize",
    "benchmark": "bench",
    "chats": "history list",
}
"""What other tools call our commands."""

OTHER_OPTIONS = {
    "--max-model-len": "--max-context",
    "--max-num-seqs": "--slots",
    "--tensor-parallel-size": "--device cuda:all",
    "--kv-cache-dtype": "--image-kv fp8",
    "--enable-lora": "--adapter DIR",
    "--lora-modules": "--adapter DIR",
    "--allowed-origins": "--cors",
    "--allowed-media-domains": "--allow-image-urls",
    "--num-predict": "--max-tokens",
    "--n-predict": "--max-tokens",
    "--max-new-tokens": "--max-tokens",
    "--load-in-4bit": "--quantize int4",
    "--load-in-8bit": "--quantize int8",
    "--format": "--schema",
    "--no-color": "the environment variable NO_COLOR=1",
}
"""What options of vLLM, ollama, llama.cpp and transformers are called here."""

_REWORDED = (
    (r"^Value error, ", ""),
    (r"^Input should be ", "must be "),
    (r", (unable to|got) .*", ""),
    (r"a valid integer", "a whole number"),
    (r"a valid (number|boolean)", r"a \1"),
)
"""Pydantic's words, with which Typer reports values, and ours."""

_EXTRA_WORD = re.compile(r"Got unexpected extra argument(?:\(s\))? \((\S+)\)")


def unknown_command(words: list[str], commands: Iterable[str]) -> UsageError:
    """Return the error for a first word that is not a command, with the command that it was probably meant for."""
    words = [one_line(word, 200) for word in words[:20]]
    word, rest = words[0], words[1:]
    if word in OTHER_NAMES:
        meant = f"mllama {OTHER_NAMES[word]} {shlex.join(rest)}".strip()
    elif has_source_name(word):
        pictures = [each for each in words if has_source_name(each)]
        question = [each for each in rest if each not in pictures] or ["What is this?"]
        flags = (part for each in pictures for part in ("-i", each))
        meant = f"mllama chat {shlex.join([*flags, *question])}"
    elif (near := suggest(word, commands, cutoff=0.7, show=lambda name: f"`mllama {name}`")) and " " not in word:
        return UsageError(f"There is no command {word!r}", f"{near}`mllama --help` lists the commands.")
    elif _is_model(word):
        meant = f"mllama chat -m {shlex.join(words)}"
    else:
        meant = f"mllama chat {shlex.quote(' '.join(words))}"
        if len(words) == 1 and word.isalnum():
            return UsageError(
                f"There is no command {word!r}", f"A question: {meant}. `mllama --help` lists the commands."
            )
    return UsageError(f"There is no command {word!r}", f"Did you mean: {meant}")


def _is_model(word: str) -> bool:
    from mllama_cli.hub.catalog import MODEL_ALIASES, is_built_in, local_model, short_name

    known = word.lower() in MODEL_ALIASES or short_name(word) != word
    return known or is_built_in(word) or local_model(word) is not None


def reworded(error: Any) -> UsageError:
    """Return Typer's usage error as ours."""
    path = error.ctx.command_path if getattr(error, "ctx", None) is not None else "mllama"
    hint = f"`{path} --help` shows how it is used."
    if (name := getattr(error, "option_name", None)) and hasattr(error, "possibilities"):
        return UsageError(f"There is no option {one_line(name, 60)}", f"{_meant_option(name, error)}{hint}")
    parameter = getattr(error, "param", None)
    if parameter is None:
        message = _sentence(error.format_message())
        if extra := _EXTRA_WORD.fullmatch(message):
            if any("--model" in option.opts for option in error.ctx.command.params):  # vLLM's and SGLang's order
                hint = f"Did you mean: {path} -m {shlex.quote(extra[1])}"
            return UsageError(f"`{path}` does not take {extra[1]!r}", hint)
        return UsageError(message, hint)
    label = "/".join(parameter.opts) if parameter.param_type_name == "option" else _label(parameter)
    message = _sentence(error.message)
    if not message or message.startswith("Missing"):
        return UsageError(f"{label} is missing", hint)
    for pattern, ours in _REWORDED:
        message = re.sub(pattern, ours, message)
    if choices := re.fullmatch(r"('.*') is not (?:one of|a valid) (.*)", message):
        message = f"must be one of {choices[2].replace(chr(39), '')}, not {choices[1]}"
    elif message.startswith("must ") and (given := _given(error)) is not None:
        message += f", not {given!r}"
    message = one_line(message, 300)
    return UsageError(f"{label} {message}" if message.startswith("must ") else f"{label}: {message}", hint)


def _meant_option(name: str, error: Any) -> str:
    meant = OTHER_OPTIONS.get(name, "")
    ours = {option for parameter in error.ctx.command.params for option in parameter.opts} if error.ctx else set()
    if meant and (not meant.startswith("-") or meant.split()[0] in ours):
        return f"Did you mean {meant}? "
    return suggest(name, error.possibilities or ())


def _given(error: Any) -> Any:
    """Return the value that pydantic refused, if it says so."""
    details = getattr(error.__cause__, "errors", None)
    return details()[0].get("input") if details is not None else None


def _label(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _sentence(text: str) -> str:
    """Return a message of Typer's, which may quote anything, on one line."""
    return " ".join(one_line(text, 300).split()).rstrip(".")
