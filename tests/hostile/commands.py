"""Whole commands: what reaches the terminal is two short lines without control characters, and an exit code."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from tests.checkpoints import config_dict, make_checkpoint, write_json
from tests.console import run_here
from tests.hostile.cases import SECRET, Case
from tests.processing.pictures import file_of, noise

ESCAPE = "\x1b]0;owned\x07\x1b[2J"
PICTURE = "p.png"
COMMANDS: tuple[tuple[str, ...], ...] = (
    ("chat", "-i", f"{ESCAPE}.png", "Hi"), ("chat", "-i", f"http://bob:{SECRET}@[/x", "Hi"), ("chat", "-m", ESCAPE,
    "Hi"),
    ("chat", "-i", "A" * 5000, "Hi"), ("chat", "-i", "x" * 300, "Hi"), ("chat", "-i", "/dev/zero", "Hi"), ("chat",
    ESCAPE + "x"),
    ("chat", "-i", PICTURE, "--messages", "~nosuch/x"), ("chat", "--messages", "/dev/zero"), ("chat", "--seed",
    "9" * 30, "Hi"),
    ("chat", "--temperature", "nan", "Hi"), ("chat", "--temperature", ESCAPE, "Hi"), ("chat", f"--{ESCAPE}", "Hi"),
    ("chat", "--max-tokens", "9" * 5000, "Hi"), ("chat", "--device", ESCAPE, "Hi"), ("chat", "--resume", ESCAPE),
    ("chat", "-m", "evil", "Hi"), ("chat", "-m", "evil", "--raw", "Hi"), ("show", "evil"), ("show", "evil",
    "--template"),
    ("show", ESCAPE), ("show", "/dev/zero"), ("show", "\0"), ("list",), ("list", "--json"), ("rm", ESCAPE), ("rm",
    ".."),
    ("rm", "/"), ("download", ESCAPE), ("download", "../.."), ("download", f"https://bob:{SECRET}@hf.co/a/b"),
    (ESCAPE,),
    ("caption", ESCAPE), ("caption", "~nosuch/x"), ("caption", PICTURE, "--prompt-file", "/dev/zero"),
    ("caption", "--files-from", "/dev/zero"), ("caption", PICTURE, "-o", f"{ESCAPE}.jsonl/x.jsonl"),
    ("caption", PICTURE, "-p", "{" + ESCAPE + "}"), ("caption", PICTURE, "-p", "{x}"), ("caption", PICTURE,
    "--shard", "9/1"),
    ("quantize", "evil", "/"), ("quantize", "evil", ESCAPE), ("quantize", "sketch", "/dev/null"), ("bench", "-m",
    ESCAPE),
    ("config", "set", ESCAPE, "1"), ("config", "set", "temperature", ESCAPE), ("config", "set", "seed", "9" * 5000),
    ("config", "get", ESCAPE), ("history", "show", ESCAPE), ("history", "rm", ESCAPE), ("history", "export", ESCAPE,
    "-"),
    ("history", "export", "1", "/dev/full"), ("history", "list"), ("completion", ESCAPE), ("help", ESCAPE),
)  # fmt: skip
MESSAGES = ("chat", "--messages", "-")
PIPED: dict[str, tuple[tuple[str, ...], bytes]] = {
    "a role with an escape sequence": (MESSAGES, json.dumps([{"role": ESCAPE, "content": "x"}]).encode()),
    "a role of 10 MB": (MESSAGES, json.dumps([{"role": "x" * 10**7, "content": "x"}]).encode()),
    "a path with an escape sequence": (MESSAGES, json.dumps([{"role": "user", "images": [ESCAPE]}]).encode()),
    "deep JSON": (MESSAGES, b"[" * 10**6),
    "text that is not UTF-8": (("chat", "Hi"), b"\xff\xfe\xfd"),
    "70 MB of text": (("chat", "Hi"), b"x" * 70 * 2**20),
    "a picture that is text": (("chat", "-i", "-", "Hi"), ESCAPE.encode() * 99),
    "a list with a NUL": (("caption", "-"), b"a\0b.png\n"),
    "a list of odd names": (("caption", "-"), ESCAPE.encode() + b".png\n\xff.png\n"),
}


def cases() -> Iterator[Case]:
    """Yield commands; "evil" is a model folder whose texts all hold escape sequences."""
    for arguments in COMMANDS:
        name = " ".join(arguments)
        yield Case(f"mllama {repr(name)[1:60]}", lambda folder, a=arguments: _run(folder, a, None))
    for name, (arguments, data) in PIPED.items():
        yield Case(
            f"mllama {arguments[0]} < {name}", lambda folder, a=arguments, d=data: _run(folder, a, d), len(data) > 10**7
        )


def _run(folder: Path, arguments: tuple[str, ...], stdin: bytes | None) -> None:
    for name in ("MLLAMA_HOME", "HF_HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        os.environ[name] = str(folder / "home")
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_ENDPOINT"] = "http://127.0.0.1:1"
    os.environ.pop("MLLAMA_CONFIG", None)
    (folder / PICTURE).write_bytes(file_of(noise()))
    _evil_model(folder / "home" / "models" / "evil")
    result = run_here(*arguments, stdin=b"" if stdin is None else stdin)
    assert result.code in (0, 1, 2, 3), f"exit code {result.code}"
    assert "Traceback" not in result.err, result.err
    assert SECRET not in result.out + result.err, "a password is shown"
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", result.err), "a control character reaches stderr"
    assert all(len(line) <= 600 for line in result.error_lines), "a line is too long"
    if result.code:
        assert result.error_lines[0].startswith("mllama: "), result.err[:300]


def _evil_model(folder: Path) -> None:
    make_checkpoint(folder, template=f"{{{{ raise_exception({ESCAPE!r} + 'no\nmllama: all is well') }}}}")
    (folder / "LICENSE").write_text(f"{ESCAPE}licence")
    write_json(folder / "config.json", {**config_dict(), "quantization_config": {"quant_method": ESCAPE}})
