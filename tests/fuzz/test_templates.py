"""Chat templates, which are programs, and the conversations that they get."""

import json
from pathlib import Path

from hypothesis import strategies as st

from mllama_cli.processing.chat_template import ChatTemplate
from tests.fuzz.conftest import Fuzz
from tests.fuzz.inputs import TEXTS, changed, damaged

PIECES = (
    "{% for m in messages %}", "{% endfor %}", "{% if m.role == 'user' %}", "{% else %}", "{% endif %}",
    "{{ m.content }}", "{{ m['content'][0]['text'] }}", "{% set x = x ~ x %}", "{% set ns = namespace(a=1) %}",
    "{% set ns.a = 'x' * 9999 %}", "{% macro f(a) %}", "{% endmacro %}", "{{ f(f) }}", "{% break %}",
    "{% continue %}", "{{ raise_exception('no\n') }}", "{{ strftime_now('%Y%') }}",
    "{{ messages | tojson(indent=4) }}", "{{ ''.__class__.__mro__ }}", "{{ 1 / 0 }}", "{% generation %}",
    "{% endgeneration %}", "{{ 'a'.format(9) }}", "{{ '%9999999d' % 1 }}", "{{ range(10**9) | list }}",
    "{% for a in range(99999) %}", "{{ cycler }}", "{{ lipsum() }}", "{{ self }}", "{% include 'x' %}",
    "{% extends 'x' %}", "{% raw %}", "{% endraw %}", "{#", "#}", "{{", "}}", "{%", "%}", "text", "<|image|>",
    "{% call f(1) %}", "{% endcall %}", "{% filter upper %}", "{% endfilter %}", "{{ messages.append(1) }}",
    "{{ bos_token }}", "\0", "\ud800", "{{ undefined.x }}",
)  # fmt: skip
MESSAGES = [
    {"role": "system", "content": "x"},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "x"}]},
    {"role": "assistant", "content": "y", "tool_calls": [{"function": {"name": "f", "arguments": {"a": [1]}}}]},
]


def test_a_template(fuzz: Fuzz) -> None:
    def render(source: str, first: object) -> None:
        template = ChatTemplate(source, {"bos_token": "<|begin_of_text|>"}, seconds=2)
        for messages in ([first], MESSAGES, []):
            assert isinstance(template.render(messages), str)

    sources = st.lists(st.sampled_from(PIECES) | TEXTS, max_size=8).map("".join)
    fuzz(render, sources, changed(MESSAGES[1]))


def test_the_file_of_a_template(fuzz: Fuzz, tmp_path: Path) -> None:
    def read(data: bytes, name: str) -> None:
        (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
        (tmp_path / name).write_bytes(data)
        ChatTemplate.from_pretrained(tmp_path)

    files = damaged([b"\xef\xbb\xbf{{ x }}", b"\xff\xfe{\0{\0", json.dumps({"chat_template": "{{ x }}"}).encode()])
    fuzz(read, files, st.sampled_from(["chat_template.jinja", "chat_template.json"]))
