"""Conversations in JSON, and what users type, paste, drop and pipe."""

import base64
import copy
import os
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

from mllama_cli.chat.dropped_paths import find_images
from mllama_cli.core.conversation import Conversation
from mllama_cli.core.settings import KEYS
from mllama_cli.hub.catalog import resolve
from mllama_cli.processing.messages import load_request, parse_request
from mllama_cli.processing.processor import MllamaProcessor
from mllama_cli.system.paths import built_in_model
from mllama_cli.system.text_file import read_text
from tests.fuzz.test_messages import DATA_URL, ENCODED, REQUEST, read_no_file
from tests.hostile.cases import Case
from tests.hostile.checkpoints import NOT_JSON, ODD

CONTEXT = 131_072
"""Tokens, as of the released models."""
USER = {"role": "user", "content": "hi"}
MESSAGES: dict[str, Any] = {
    "an unknown role": [{"role": "\x1b]0;x\x07", "content": "x"}],
    "a role of 10 MB": [{"role": "x" * 10**7, "content": "x"}],
    "a part of an unknown type": [{"role": "user", "content": [{"type": "x" * 10**6}]}],
    "an attachment": [{**USER, "attachments": [ENCODED]}],
    "a picture in a place that is not read": [{**USER, "x": {"y": [DATA_URL]}}],
    "base64 that is not": [{**USER, "images": ["A" * 1001]}],
    "base64 of something else": [{**USER, "images": [base64.b64encode(b"x" * 999).decode()]}],
    "a lone surrogate": [{"role": "user", "content": "\ud800"}],
    "100,000 messages": [USER] * 100_000,
    "100,000 parts": [{"role": "user", "content": [{"type": "text", "text": "x"}] * 100_000}],
    "100,000 tool calls": [{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}] * 100_000}, USER],
    "calls of deep arguments": [
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[" * 10**5}}]}, USER,
    ],
    "no messages": {"model": "m"},
    "the system alone": [{"role": "system", "content": "x"}],
    "a path to a device": [{**USER, "images": ["/dev/zero"]}],
}  # fmt: skip
PIPED = {
    **NOT_JSON,
    "JSON Lines": b'{"role": "user", "content": "x"}\n' * 2,
    "50 MB of text": b'[{"role": "user", "content": "' + b"x" * 50 * 2**20 + b'"}]',
    "70 MB": b" " * 70 * 2**20,
}
LINES = {
    "a name that is too long": "please see " + "a" * 300 + "/x.png thanks",
    "brackets like IPv6": "file://[x.png",
    "an unknown user": "~nosuch/x.png",
    "a NUL": "/\0.png",
    "a lone surrogate": "/\ud800.png \ud800",
    "20,000 names": "/nowhere/a.png " * 20_000,
    "20,000 words like names": "a.png " * 20_000,
    "100,000 quotes": "'" * 100_001,
    "100,000 double quotes": '"' * 100_001,
    "100,000 backslashes": "\\" * 100_001,
    "a quote and 10 MB": '"' + "x" * 10**7,
    "10 MB of blanks": " " * 10**7,
    "10 MB of letters": "x" * 10**7,
    "10 MB of brackets": ")" * 10**6 + ".png",
    "a million escaped blanks": "a\\ " * 10**6 + ".png",
    "an address with a password": "http://bob:hunter2@[::1/x.png",
}
MODELS = (
    "", ".", "..", "/", "x" * 300, "a\x1b[2J", "a/b/../../..", "~nosuch/x", "http://[", "hf.co/a/b/tree/%00",
)  # fmt: skip
PROMPTS = {
    "10 MB of words": "word " * 2 * 10**6,
    "one word of 10 MB": "x" * 10**7,
    "all private use characters": "".join(map(chr, range(0xE000, 0xF8FF))),
    "special tokens": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nx<|eot_id|><|image|>" * 9,
    "lone surrogates": "\ud800" * 99,
    "NULs": "\0" * 99,
    "a million combining marks": "e" + "\u0301" * 10**6,
}


def messages() -> Iterator[Case]:
    """Yield conversations in JSON."""
    for name, data in MESSAGES.items():
        yield Case(f"messages: {name}", lambda _, data=data: parse_request(data))
    for odd in ODD:
        for path, data in _replaced(REQUEST, odd):
            name = f"messages: {path} = {repr(odd)[:20]}"
            yield Case(name, lambda _, data=data: parse_request(data, read_no_file))
    for name, data in PIPED.items():
        heavy = len(data) > 2**24
        yield Case(f"piped messages: {name}", lambda _, data=data: load_request("-", BytesIO(data)), heavy)
    for path in ("/dev/zero", "/", "/dev/stdin/x", "~nosuch/x", "x" * 300, "a\0b", ""):
        yield Case(f"messages in {path[:20]!r}", lambda _, path=path: load_request(path), path == "/dev/zero")


def _replaced(data: Any, odd: Any) -> Iterator[tuple[str, Any]]:
    """Yield (path, data) with each value at any depth replaced."""
    for place in _places(data):
        changed = copy.deepcopy(data)
        inner = changed
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = odd
        yield ".".join(map(str, place)), changed


def _places(data: Any) -> Iterator[tuple[Any, ...]]:
    for key, value in data.items() if isinstance(data, dict) else enumerate(data):
        yield (key,)
        if isinstance(value, dict | list):
            yield from ((key, *rest) for rest in _places(value))


def typed() -> Iterator[Case]:
    """Yield lines of the chat, prompts, names of models, values of settings, and texts that are read from files."""
    for name, line in LINES.items():
        yield Case(f"line: {name}", lambda _, line=line: find_images(line), len(line) > 10**5)
    for name, prompt in PROMPTS.items():
        yield Case(f"prompt: {name}", lambda _, prompt=prompt: _tokenize(prompt), len(prompt) > 10**5)
    for name in (
        "",
        ".",
        "..",
        "/",
        "x" * 300,
        "a\x1b[2J",
        "a/b/../../..",
        "~nosuch/x",
        "http://[",
        "hf.co/a/b/tree/%00",
    ):
        yield Case(f"model {name[:20]!r}", lambda _, name=name: resolve(name))
    for key, parameter in KEYS.items():
        for text in ("", "x", "nan", "inf", "1e999", "-1", "9" * 5000, "\ud800", "\x1b]0;x\x07", "x" * 10**6):
            yield Case(f"{key} = {text[:20]!r}", lambda _, p=parameter, k=key, t=text: p.parsed(t, k))
    for path in ("/dev/zero", "/dev/null", "/", "x" * 300, "\0", "/proc/self/mem", "/dev/full", "~nosuch/x"):
        yield Case(f"text in {path[:20]!r}", lambda _, path=path: read_text(Path(path)))
    yield Case("a pipe in place of a config", _read_pipe)


def _tokenize(prompt: str) -> None:
    processor = MllamaProcessor.from_pretrained(built_in_model(), max_tokens=CONTEXT)
    processor(Conversation.ask(prompt))


def _read_pipe(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    read_text(folder / "pipe", pipes=False)
