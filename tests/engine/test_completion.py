"""Token ids to text, and when an answer ends."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.completion import Completion, StopStrings
from mllama_cli.processing.tokenizer import MllamaTokenizer
from tests.checkpoints import EOT, byte_tokenizer

TOKENIZER = MllamaTokenizer(byte_tokenizer())


EOS = -1


def completion(room: int = 10**6, **sampling: Any) -> Completion:
    return Completion(TOKENIZER, Sampling(**{"max_tokens": 10**6, **sampling}), {EOS}, room)


@given(st.text())
def test_streamed_text_is_the_text_and_never_half_a_character(text: str) -> None:
    answer = completion()
    pieces = [answer.push(byte) for byte in text.encode()]
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text
    assert "".join(pieces) + answer.push(EOS) == answer.text == text


def test_bytes_that_never_become_a_character_end_as_a_replacement() -> None:
    answer = completion()
    assert answer.push(0xE2) == ""
    assert answer.push(EOT) == "", "special tokens are not text"
    assert answer.push(EOS) == "\ufffd"


def test_an_answer_says_why_it_ends_and_shows_what_was_held_back() -> None:
    a, b = b"ab"
    ended = completion(stop=("bc",))
    assert [ended.push(token) for token in (a, b)] == ["a", ""]
    assert ended.finish_reason is None
    assert ended.push(EOS) == "b", "the beginning of a stop string that did not come"
    assert (ended.finish_reason, ended.ids, ended.text) == ("stop", [a, b], "ab")

    stopped = completion(stop=("b",))
    assert [stopped.push(token) for token in (a, b)] == ["a", ""]
    assert (stopped.finish_reason, stopped.ids, stopped.text) == ("stop_string", [a, b], "a")

    for long in (completion(max_tokens=2, stop=("bc",)), completion(room=2, stop=("bc",))):
        assert [long.push(token) for token in (a, b)] == ["a", "b"]
        assert (long.finish_reason, long.text) == ("length", "ab")


@given(st.text("ab"), st.lists(st.text("ab", min_size=1, max_size=3), max_size=3), st.integers(1, 4))
def test_stop_strings_cut_at_the_first_one(text: str, stops: list[str], size: int) -> None:
    matcher, shown, stopped = StopStrings(stops), "", False
    for start in range(0, len(text), size):
        piece, stopped = matcher.push(text[start : start + size])
        shown += piece
        if stopped:
            break
    else:
        shown += matcher.finish()
    ends = [text.index(stop) for stop in stops if stop in text]
    assert stopped == bool(ends)
    if not ends:
        assert shown == text
    else:
        assert not any(stop in shown for stop in stops)
        assert text.startswith(shown)


@pytest.mark.parametrize(("pushed", "expected"), [(["a", "b"], ["a", ""]), (["xSTO", "P"], ["x", ""])])
def test_what_may_become_a_stop_string_is_held_back(pushed: list[str], expected: list[str]) -> None:
    matcher = StopStrings(["STOP", "bc"])
    assert [matcher.push(text)[0] for text in pushed] == expected
