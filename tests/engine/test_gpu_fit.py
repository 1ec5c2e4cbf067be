"""The fit of models on GPUs of all sizes, and the tables of it in the documentation."""

from itertools import pairwise

import pytest
import torch

from mllama_cli.benchmark.gpu_fit import GPU_MIB, fit, usable_bytes
from mllama_cli.benchmark.random_network import random_network
from mllama_cli.core.config import MllamaConfig
from mllama_cli.engine.batch.capacity import MAX_SLOTS
from mllama_cli.engine.weights.offload import sizes_of_shape
from mllama_cli.engine.weights.shapes import SHAPES
from tests.benchmarks.card_table import FORMATS, several_table, short_table, table
from tests.checkpoints import config_dict
from tests.conftest import ROOT


def test_the_documentation_says_what_is_computed() -> None:
    assert table() in (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    assert short_table() in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_page_about_several_gpus_says_what_is_computed() -> None:
    assert several_table() in (ROOT / "docs" / "several-gpus.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_more_cards_never_hold_less(shape: str, form: str | None) -> None:
    found = [fit(SHAPES[shape], form, usable_bytes(24, gpus), gpus=gpus) for gpus in (2, 4, 8)]
    assert [f is not None for f in found] == sorted(f is not None for f in found)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_larger_card_never_holds_less(shape: str, form: str | None) -> None:
    found = [fit(SHAPES[shape], form, usable_bytes(card)) for card in GPU_MIB]
    assert [f is not None for f in found] == sorted(f is not None for f in found)
    slots = [f.slots for f in found if f]
    assert slots == sorted(slots)
    assert all(1 <= count <= MAX_SLOTS["cuda"] for count in slots)
    for one, other in pairwise(found):
        if one and other and one.plan == other.plan:
            assert one.context <= other.context


def test_sizes_without_weights_are_those_of_weights() -> None:
    config = MllamaConfig.from_dict(config_dict())
    for form in FORMATS:
        made = random_network(config, dtype=torch.float32, device=torch.device("cpu"), quantize=form)
        assert sizes_of_shape(config, form, 4, ranks=2).total < sizes_of_shape(config, form, 4).total
        assert sizes_of_shape(config, form, 4).total == sum(parameter.nbytes for parameter in made.parameters())
