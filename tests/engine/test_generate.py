"""Token ids to text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mllama_cli.engine.completion import StopStrings, TextStream
from mllama_cli.processing.tokenizer import MllamaTokenizer
from tests.checkpoints import EOT, byte_tokenizer

TOKENIZER = MllamaTokenizer(byte_tokenizer())


@given(st.text())
def test_streamed_text_is_the_text_and_never_half_a_character(text: str) -> None:
    stream = TextStream(TOKENIZER)
    pieces = [stream.push(byte)[0] for byte in text.encode()]
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text
    assert "".join(pieces) + stream.finish() == text


def test_bytes_that_never_become_a_character_end_as_a_replacement() -> None:
    stream = TextStream(TOKENIZER)
    assert stream.push(0xE2) == ("", False)
    assert stream.push(EOT) == ("", False), "special tokens are no text"
    assert stream.finish() == "\ufffd"


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
