"""Answers of the decoder that replays captured steps, with kernels interpreted: those of the network's own steps.

Without a GPU nothing is captured: each replay runs what would have been.
"""

from collections.abc import Callable
from contextlib import closing
from itertools import islice
from pathlib import Path

import pytest
import torch

from tests.triton_here import DEVICE  # isort: skip  (first: it prepares Triton)

from mllama_cli.core.conversation import Conversation
from mllama_cli.core.events import GenerationStats, Token
from mllama_cli.core.grammar import Grammar
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.cuda.backend import CapturedDecoder
from mllama_cli.engine.engine import Engine, load
from tests.checkpoints import config_dict, make_checkpoint
from tests.engine.conftest import picture
from tests.engine.cuda.replays import replay_on_cpu

FORM = Grammar.regex("(one|two)-total: [0-9] EUR")
TEXT = Conversation.ask("Hello")
ASK = Conversation.ask("What is this?", (picture("red"),))

pytestmark = pytest.mark.skipif(DEVICE.type != "cpu", reason="on a GPU, tests/gpu decodes with real graphs")


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], object]]:
    """Run work that would be captured at each replay; return what has been replayed."""
    return replay_on_cpu(monkeypatch).done


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    text = {"hidden_size": 128, "num_hidden_layers": 3, "cross_attention_layers": [1], "num_attention_heads": 4}
    return make_checkpoint(tmp_path_factory.mktemp("models") / "tiny", config_dict(text=text), seed=3)


@pytest.fixture
def engines(folder: Path, replays: object) -> tuple[Engine, Engine]:
    """One whose decoder replays, and one that decodes with the network's own operations."""
    ours, plain = (load(folder, device="cpu", dtype="float32", vision=True) for _ in range(2))
    ours.model.decoder = CapturedDecoder(ours.network, torch.float32, torch.device("cpu"))
    return ours, plain


def said(engine: Engine, talk: Conversation, sampling: Sampling) -> tuple[list[int], int]:
    events = list(engine.session().stream(talk, sampling))
    assert isinstance(events[-1], GenerationStats)
    return [event.id for event in events if isinstance(event, Token)], events[-1].completion_tokens


@pytest.mark.parametrize(("talk", "temperature"), [(TEXT, 0.0), (ASK, 1.5)], ids=["text", "image"])
def test_certain_tokens_are_fed_together_and_change_no_answer(
    engines: tuple[Engine, Engine], replays: list[object], talk: Conversation, temperature: float
) -> None:
    sampling = Sampling(grammar=FORM, temperature=temperature, seed=4)
    ours, count = said(engines[0], talk, sampling)
    assert (ours, count) == said(engines[1], talk, sampling)
    assert count >= 16
    assert len(replays) < count, "a step and a choice for each token would be twice as many"


def test_log_probabilities_are_those_of_single_steps(engines: tuple[Engine, Engine]) -> None:
    sampling = Sampling(grammar=Grammar.regex("[0-9] certain"), logprobs=2, max_tokens=6)
    events = [[each for each in e.stream(TEXT, sampling) if isinstance(each, Token)] for e in engines]
    assert [each.id for each in events[0]] == [each.id for each in events[1]]
    assert [each.logprob for each in events[0]] == pytest.approx([each.logprob for each in events[1]], abs=1e-4)


@pytest.mark.parametrize("most", [2, 5, 9])
def test_an_answer_cut_among_certain_tokens_has_its_longest_length(engines: tuple[Engine, Engine], most: int) -> None:
    sampling = Sampling(grammar=FORM, max_tokens=most)
    ours, count = said(engines[0], TEXT, sampling)
    assert count == most
    assert (ours, count) == said(engines[1], TEXT, sampling)


def test_an_answer_abandoned_among_certain_tokens_leaves_the_cache_usable(engines: tuple[Engine, Engine]) -> None:
    sampling = Sampling(grammar=FORM)
    session = engines[0].session()
    with closing(session.stream(TEXT, sampling)) as events:
        begun = list(islice((each.id for each in events if isinstance(each, Token)), 7))
    whole, _ = said(engines[1], TEXT, sampling)
    assert begun == whole[:7]
    talk = TEXT.with_assistant(engines[0].processor.tokenizer.decode(begun)).with_user("Go on")
    free = Sampling(max_tokens=3)
    after = [each for each in session.stream(talk, free) if isinstance(each, Token | GenerationStats)]
    assert [each.id for each in after if isinstance(each, Token)] == said(engines[1], talk, free)[0]
    last = after[-1]
    assert isinstance(last, GenerationStats)
    assert last.cached_tokens > len(engines[0].processor(TEXT).ids), "certain tokens that were said are in the cache"


def test_free_answers_run_ahead_to_the_same_tokens(engines: tuple[Engine, Engine]) -> None:
    for sampling in (Sampling(max_tokens=6), Sampling(max_tokens=4, temperature=1.0, seed=2, logprobs=1)):
        assert said(engines[0], ASK, sampling) == said(engines[1], ASK, sampling)
