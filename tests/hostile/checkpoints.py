"""Files of a model folder: configs, weights, chat templates and tokenizers of strangers."""

import json
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mllama_cli.checkpoint.contents import read_contents
from mllama_cli.checkpoint.files import INDEX_FILE, SINGLE_FILE
from mllama_cli.core.config import GenerationConfig, MllamaConfig, section
from mllama_cli.hub.catalog import installed, resolve
from mllama_cli.hub.inspect import inspect
from mllama_cli.hub.kinds import kind
from mllama_cli.processing.chat_template import ChatTemplate
from mllama_cli.processing.prepared import read_image_config
from mllama_cli.processing.tokenizer import MllamaTokenizer
from mllama_cli.system.json_file import read_json
from tests.checkpoints import config_dict, write_json, write_preprocessor, write_tokenizer
from tests.fuzz.test_configs import GENERATION, GROUPS, PREPROCESSOR
from tests.fuzz.test_weights import HEADER, file_with
from tests.hostile.cases import Case

ODD: tuple[Any, ...] = (
    "x", "", [], [1], [[[1]]], {}, {"a": 1}, True, None, 1.5, 0, -1, 10**9, 10**18, 10**400, float("nan"),
    float("inf"),
    "9" * 5000, "\x1b]0;x\x07\n", "\ud800",
)  # fmt: skip
NOT_JSON = {
    "nothing": b"", "zeros": bytes(99), "a web page": b"<!doctype html>", "deep lists": b"[" * 10**6,
    "deep objects": b'{"a":' * 10**5, "a list": b"[]", "Latin-1": b'{"a": "\xe9"}', "cut": b'{"model_type": "mll',
    "many digits": b'{"a": ' + b"9" * 5000 + b"}", "more digits": b'{"a": ' + b"9" * 10**7 + b"}",
    "5 million lists": b'{"a": [' + b"[]," * 5_000_000 + b"1]}", "17 MB of blanks": b" " * 17 * 2**20 + b"{}",
    "UTF-16": "{}".encode("utf-16"), "a number beyond any float": b'{"a": 1e999}', "two values": b"{} {}",
}  # fmt: skip
JSON_FILES = ("config.json", "generation_config.json", "preprocessor_config.json", "tokenizer_config.json", INDEX_FILE)


def variants(data: Any, odd: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (path, data) with each entry, at any depth, replaced."""
    for key, value in data.items():
        yield f"{where}{key}", {**data, key: odd}
        if isinstance(value, dict):
            for path, inner in variants(value, odd, f"{where}{key}."):
                yield path, {**data, key: inner}


def read_folder(folder: Path) -> None:
    """Read all that the commands read before they load weights."""
    kind(folder)
    resolve(str(folder))
    raw = read_json(folder / "config.json")
    MllamaConfig.from_dict(raw)
    if (folder / "generation_config.json").exists():
        GenerationConfig.from_dict(read_json(folder / "generation_config.json"))
    read_image_config(folder)
    ChatTemplate.from_pretrained(folder)
    read_contents(folder, section(raw, "quantization_config"))


def configs() -> Iterator[Case]:
    """Yield configs with each entry replaced, and files that are not JSON."""
    sound: dict[str, Any] = {
        "config.json": config_dict(), "generation_config.json": GENERATION, "preprocessor_config.json": PREPROCESSOR,
    }  # fmt: skip
    for name, good in sound.items():
        for odd in ODD:
            for path, data in variants(good, odd):
                yield _written(f"{name}: {path} = {repr(odd)[:20]}", {name: json.dumps(data).encode()}, read_folder)
    for odd in ODD:
        for path, data in variants(GROUPS, odd):
            config = json.dumps({**config_dict(), "quantization_config": data}).encode()
            yield _written(f"quantization_config: {path} = {repr(odd)[:20]}", {"config.json": config}, read_folder)
    for name in JSON_FILES:
        for what, data in NOT_JSON.items():
            yield _written(f"{name}: {what}", {name: data}, read_folder)


def _written(name: str, files: dict[str, bytes], read: Callable[[Path], object], *, heavy: bool = False) -> Case:
    def attempt(folder: Path) -> None:
        write_json(folder / "config.json", config_dict())
        write_preprocessor(folder, 56)
        (folder / SINGLE_FILE).write_bytes(file_with(HEADER))
        for file, data in files.items():
            (folder / file).write_bytes(data)
        read(folder)

    return Case(name, attempt, heavy)


def _entry(**changes: Any) -> bytes:
    return file_with({"w": {"dtype": "I64", "shape": [4], "data_offsets": [0, 32], **changes}})


def _raw(text: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text


EMPTY = b'{"dtype":"I8","shape":[0],"data_offsets":[0,0]}'
WEIGHTS: dict[str, bytes] = {
    **{f"header: {name}": _raw(data[: 15 * 2**20]) for name, data in NOT_JSON.items()},
    **{f"{key} = {repr(odd)[:20]}": _entry(**{key: odd}) for key in ("dtype", "shape", "data_offsets") for odd in ODD},
    **{
        f"offsets {pair}": _entry(data_offsets=pair)
        for pair in ([0, 33], [8, 0], [-8, 24], [2**63, 2**64], [1, 33], [0])
    },
    **{f"cut at {tenth}0 %": file_with(HEADER)[: len(file_with(HEADER)) * tenth // 10] for tenth in range(10)},
    **{f"metadata {repr(odd)[:20]}": file_with({"__metadata__": odd}) for odd in ODD},
    "a header of 2 ** 63 bytes": _raw(b"{}", 2**63),
    "a header of 300 MB": _raw(b"{}", 300 * 2**20),
    "a shape of 100,000 dimensions": _entry(shape=[1] * 100_000),
    "a name of 10 MB": _raw(b'{"' + b"n" * 10**7 + b'":' + EMPTY + b"}"),
    "a layer of 5000 digits": _raw(b'{"model.layers.' + b"9" * 5000 + b'.w":' + EMPTY + b"}"),
    "a name with an escape sequence": _raw(b'{"\\u001b]0;x\\u0007\\n":5}'),
    "the same name twice": _raw(b'{"a":' + EMPTY + b',"a":' + EMPTY + b"}"),
    "200,000 tensors": _raw(b"{" + b",".join(b'"%d":' % n + EMPTY for n in range(200_000)) + b"}"),
    "50,000 tensors": _raw(b"{" + b",".join(b'"%d":' % n + EMPTY for n in range(50_000)) + b"}"),
    "a pickle": b"\x80\4\x95cposix\nsystem\n(S'exit 3'\ntR.",
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n",
}
INDEXES: dict[str, Any] = {
    **{f"weight_map = {repr(odd)[:20]}": {"weight_map": odd} for odd in ODD},
    **{f"a file called {repr(odd)[:20]}": {"weight_map": {"a": odd}} for odd in ODD},
    **{f"a file called {name}": {"weight_map": {"a": name}}
       for name in ("../../../../etc/passwd", "/dev/zero", "/etc/passwd", "x" * 300, "\0", ".", "~root/x",
       "a\x1b[2J")},
    "100,000 files": {"weight_map": {str(n): f"{n}.safetensors" for n in range(100_000)}},
}  # fmt: skip


def weights() -> Iterator[Case]:
    """Yield weight files, and things in their places."""
    for name, data in WEIGHTS.items():
        yield _written(name, {SINGLE_FILE: data}, inspect)
    for name, index in INDEXES.items():
        yield _written(f"index: {name}", {INDEX_FILE: json.dumps(index).encode()}, inspect)
    for name in ("pytorch_model.bin", "x.gguf", "consolidated.00.pth", "adapter_config.json"):
        yield Case(f"a folder with {name} alone", lambda folder, name=name: _alone(folder, name))
    for target in ("/dev/zero", "/dev/null", "/etc/passwd", SINGLE_FILE, "missing"):
        yield Case(f"weights that are a link to {target}", lambda folder, to=target: _linked(folder, to))
    yield Case("weights that are a pipe", _pipe)


def _alone(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"{}")
    resolve(str(folder))


def _linked(folder: Path, target: str) -> None:
    write_json(folder / "config.json", config_dict())
    (folder / SINGLE_FILE).symlink_to(target)
    inspect(folder)


def _pipe(folder: Path) -> None:
    write_json(folder / "config.json", config_dict())
    os.mkfifo(folder / SINGLE_FILE)
    inspect(folder)


ENDLESS = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}" + "{% endfor %}" * 3
TEMPLATES = (
    ENDLESS, "{{ 'a' * 3000000000 }}", "{{ 'a'.center(3000000000) }}", "{{ 'a'.ljust(3000000000) }}",
    "{{ '%0999999999d' % 1 }}", "{{ '{:999999999}'.format(1) }}", "{{ 10 ** 10000000 }}", "{{ [0] * 300000000 }}",
    "{{ [1] | tojson(indent=10000000) }}", "{{ lipsum(n=100000) }}", "{{ 'x' * 9000000 }}",
    "{{ range(10**9) | list }}",
    "{% set ns = namespace(x='ab') %}{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
    "{{ 'a' | replace('', 'b' * 99999999) }}", "{{ ('x' * 99999) | batch(1) | list | join('y' * 99999) }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "{% break %}", "{{ '' }}", "", "{{" + "(" * 5000 + "}}",
    "{% if 1 %}" * 3000, "{{ 1" + " + 1" * 20_000 + " }}", "{{ " + "[" * 900 + "]" * 900 + " }}", "x" * 2**21,
    "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ self.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ lipsum.__globals__['os'].system('exit 3') }}", "{{ messages.__class__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__code__ }}", "{{ (1).__class__.__base__ }}", "{{ ''['__class__'] }}",
    "{{ ''|attr('__class__') }}",
    "{{ ''|map(attribute='__class__')|list }}", "{{ '{0.__class__}'.format(1) }}", "{{ ''.format_map({}) }}",
    "{% include '/etc/passwd' %}", "{% extends '/etc/passwd' %}", "{% import '/etc/passwd' as x %}", "{{ config }}",
    "{{ messages.append(1) }}", "{{ messages.clear() }}", "{{ namespace.__init__ }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ raise_exception('\x1b]0;x\x07\nmllama: all is well') }}", "{{ raise_exception('x' * 99999) }}", "{{ 1 / 0 }}",
    "{{ undefined.x }}", "{{ messages[99].content }}", "{{ strftime_now('%') }}", "{{ strftime_now('%' * 99999) }}",
    "\ud800", "\0", "{% raw %}", "{#", "{{ caller() }}", "{% call x() %}{% endcall %}", "{{ 9 | round(-(10 ** 9)) }}",
)  # fmt: skip


def templates() -> Iterator[Case]:
    """Yield chat templates: endless, huge, deep, and those that reach for what is outside of the sandbox."""
    for source in TEMPLATES:
        yield Case(f"template {source[:50]!r}", lambda _, source=source: _render(source), source in TEMPLATES[:15])
    for name, data in NOT_JSON.items():
        for file in ("chat_template.json", "chat_template.jinja"):
            yield _written(f"{file}: {name}", {file: data}, ChatTemplate.from_pretrained)
    for odd in (*ODD, [{"name": "default", "template": 5}], [{"name": ["x"]}], ["x", None]):
        data = json.dumps({"chat_template": odd}).encode()
        name = f"chat_template = {repr(odd)[:20]}"
        yield _written(name, {"tokenizer_config.json": data}, ChatTemplate.from_pretrained)


def _render(source: str) -> None:
    text = ChatTemplate(source).render([{"role": "user", "content": "x"}])
    for outside in ("root:", "<class", "<function", "globals"):
        assert outside not in text, "it got out of the sandbox"


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


PARTS: dict[str, dict[str, Any]] = {
    "a prefix of 10 MB": {"normalizer": {"type": "Prepend", "prepend": "x" * 10**7}},
    "a replacement of nothing": {"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "x"}},
    "each letter a thousand": {"normalizer": {"type": "Replace", "pattern": {"Regex": "."}, "content": "x" * 1000}},
    "a damaged character map": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    "exponential time": {"pre_tokenizer": _split("(a+)+$")},
    "a length of 0": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "an odd decoder": {"decoder": {"type": "CTC", "pad_token": "", "word_delimiter_token": "", "cleanup": True}},
    "truncation": {"truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 5}},
    "padding": {"padding": {"strategy": {"Fixed": 10**8}, "direction": "Right", "pad_to_multiple_of": None,
    "pad_id": 0,
                            "pad_type_id": 0, "pad_token": "x"}},
    "no model": {"model": None}, "no vocabulary": {"model": {"type": "BPE", "vocab": {}, "merges": []}},
    "another model": {"model": {"type": "WordPiece", "vocab": {}, "unk_token": "x", "continuing_subword_prefix": "",
                                "max_input_chars_per_word": 5}},
    "an odd prefix": {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [], "continuing_subword_prefix": "日"}},
    "an id of 2 ** 32 - 1": {"model": {"type": "BPE", "vocab": {"a": 2**32 - 1}, "merges": []}},
    "merges of nothing": {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["x", "y"]]}},
    "500,000 tokens": {"model": {"type": "BPE", "vocab": {f"t{n}": n for n in range(500_000)}, "merges": []}},
    "100,000 special tokens": {"added_tokens": [
        {"id": n, "content": f"<{n}>", "special": True, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False} for n in range(100_000)]},
}  # fmt: skip


def tokenizers() -> Iterator[Case]:
    """Yield tokenizer.json with odd parts and values."""
    for name, changes in PARTS.items():
        yield Case(f"tokenizer with {name}", lambda folder, changes=changes: _encode(folder, changes), heavy=True)
    parts = (
        "version",
        "truncation",
        "padding",
        "added_tokens",
        "normalizer",
        "pre_tokenizer",
        "post_processor",
        "decoder",
        "model",
    )
    for part in parts:
        for odd in ODD:
            changes = {part: odd}
            name = f"tokenizer: {part} = {repr(odd)[:20]}"
            yield Case(name, lambda folder, changes=changes: _encode(folder, changes))
    for name, data in NOT_JSON.items():
        yield _written(f"tokenizer.json: {name}", {"tokenizer.json": data}, MllamaTokenizer.from_pretrained)


def _encode(folder: Path, changes: dict[str, Any]) -> None:
    write_tokenizer(folder)
    data = json.loads((folder / "tokenizer.json").read_text())
    write_json(folder / "tokenizer.json", {**data, **changes})
    tokenizer = MllamaTokenizer.from_pretrained(folder)
    tokenizer.require_below(300)
    assert len(tokenizer.encode_markup("<|begin_of_text|>" + "a" * 80 + "!")) < 100
    installed()
