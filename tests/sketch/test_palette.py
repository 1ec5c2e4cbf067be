"""Named colours must not be arguable."""

import random
from itertools import combinations

import pytest

from mllama_cli.sketch.scenes.palette import COLOURS, STOCK, difference, parse_hex, sample_colour


def test_black_and_white_are_as_far_apart_as_can_be() -> None:
    assert difference((0, 0, 0), (255, 255, 255)) == pytest.approx(100, abs=0.1)
    assert difference((10, 200, 30), (10, 200, 30)) == 0


def test_names_keep_their_distance() -> None:
    rng = random.Random(1)
    values = {name: [sample_colour(rng, name) for _ in range(80)] for name in COLOURS}
    for one, other in combinations(COLOURS, 2):
        nearest = min(difference(a, b) for a in values[one] for b in values[other])
        assert nearest > 9, (one, other, nearest)


def test_stock_colours_are_colours() -> None:
    assert set(STOCK) == set(COLOURS)
    assert all(0 <= part <= 255 for codes in STOCK.values() for code in codes for part in parse_hex(code))
