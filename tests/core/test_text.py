"""Helpers for the text of messages."""

import pytest

from mllama_cli.core.text import human_size, strip_control, suggest


def test_the_nearest_names_are_suggested_whatever_their_capitals() -> None:
    assert suggest("imgae", ["image", "save"]) == "Did you mean image? "
    assert suggest("DWON_PROJ", ["down_proj", "up_proj", "lm_head"], count=2) == "Did you mean down_proj or up_proj? "
    assert suggest("dgo", ["Dog"], show=repr) == "Did you mean 'Dog'? "
    assert suggest("cafe\u0301s", ["caf\u00e9"], cutoff=0.85) == "Did you mean caf\u00e9? "


def test_nothing_is_suggested_where_nothing_is_near() -> None:
    assert suggest("zzz", ["image", "save"]) == ""
    assert suggest("", []) == ""


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (5000, "5.0 kB"), (6e6, "6.0 MB"), (178e9, "178.0 GB")]
)
def test_sizes_are_in_powers_of_a_thousand(count: float, text: str) -> None:
    assert human_size(count) == text


def test_nothing_that_steers_a_terminal_survives() -> None:
    assert strip_control("a\x1b[31mb\x07\x9bc\rd\te\n") == "a[31mbcd\te\n"
    assert strip_control("half \ud800, line\u2028end") == "half \ufffd, line end"
