"""One conversation on a GPU, from captured steps: the CPU's words, turn for turn. ``pytest -m gpu tests/gpu``."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from mllama_cli.core.answerer import Prompt, RawPrompt
from mllama_cli.core.conversation import Conversation
from mllama_cli.core.events import GenerationStats, Token
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.cuda.backend import CapturedDecoder
from mllama_cli.engine.cuda.pass_shapes import PassShape
from mllama_cli.engine.cuda.passes import CapturedPasses, Piece, shape_for
from mllama_cli.engine.engine import Engine, load
from mllama_cli.engine.session import Session
from mllama_cli.processing.images import encode_image
from tests.drawings import opened

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
GREEDY = Sampling(max_tokens=64)


@pytest.fixture(scope="module")
def engines() -> tuple[Engine, Engine]:
    return load("sketch", device="cpu", dtype="float32"), load("sketch", device="cuda", dtype="float32")


def said(session: Session, talk: Prompt, sampling: Sampling = GREEDY) -> tuple[list[int], str]:
    tokens = [event for event in session.stream(talk, sampling) if isinstance(event, Token)]
    return [token.id for token in tokens], "".join(token.text for token in tokens)


def test_it_runs_from_captured_steps(engines: tuple[Engine, Engine]) -> None:
    said(engines[1].session(), Conversation.ask("hello"))
    assert engines[1].fallback_reason == ""


def test_turns_with_and_without_pictures(engines: tuple[Engine, Engine]) -> None:
    questions = ("Describe this image in detail.", "How many shapes are there?", "hello", "What colour is it?")
    for first in range(6):
        sessions = [engine.session() for engine in engines]
        talk = Conversation()
        for turn, question in enumerate(questions):
            picture = (encode_image(opened(first + turn)),) if turn in (0, 3) and first % 3 else ()
            talk = talk.with_user(question, picture)
            (ids, text), (same, _) = (said(session, talk) for session in sessions)
            assert ids == same
            talk = talk.with_assistant(text)


def test_short_prompts_are_read_by_captured_passes(
    engines: tuple[Engine, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu, gpu = engines
    monkeypatch.setattr(gpu.model, "decoder", CapturedDecoder(gpu.network, torch.float32, gpu.device))
    shapes: list[PassShape] = []
    run = CapturedPasses.run

    def noted(passes: CapturedPasses, pieces: Sequence[Piece]) -> torch.Tensor:
        shapes.append(shape_for(pieces))
        return run(passes, pieces)

    monkeypatch.setattr(CapturedPasses, "run", noted)
    sessions = [engine.session() for engine in engines]
    talk = Conversation()
    for turn in range(6):
        pictures = (encode_image(opened(turn)),) * (turn in (1, 3, 4))
        talk = talk.with_user(("hello", "What is this?")[turn % 2], pictures)
        (ids, text), (same, _) = (said(session, talk) for session in sessions)
        assert ids == same
        talk = talk.with_assistant(text)
    assert cpu.fallback_reason == gpu.fallback_reason == ""
    assert any(shape.with_images for shape in shapes)
    for count in (3, 20, 40, 100):
        for _ in range(2):
            raw = RawPrompt("a b " * (count // 2))
            short = Sampling(max_tokens=4)
            assert said(gpu.session(), raw, short) == said(cpu.session(), raw, short)
    assert len({shape.rows for shape in shapes if not shape.with_images}) >= 3


def test_a_stopped_answer_leaves_the_cache_usable(engines: tuple[Engine, Engine]) -> None:
    session = engines[1].session()
    talk = Conversation.ask("Describe this image in detail.", (encode_image(opened(3)),))
    events = session.stream(talk, GREEDY)
    words = []
    for event in events:
        if isinstance(event, Token):
            words.append(event.text)
            if len(words) == 4:
                break
    events.close()
    talk = talk.with_assistant("".join(words)).with_user("How many shapes are there?")
    assert said(session, talk) == said(engines[0].session(), talk)


def test_a_seed_gives_the_same_answer_again(engines: tuple[Engine, Engine]) -> None:
    talk = Conversation.ask("Describe this image.", (encode_image(opened(5)),))
    hot = Sampling(temperature=4, top_p=0.95, top_k=40, min_p=0.01, repetition_penalty=1.1, seed=7, max_tokens=48)
    answers = [said(engines[1].session(), talk, hot) for _ in range(3)]
    assert answers[0] == answers[1] == answers[2]
    assert said(engines[1].session(), talk, replace(hot, seed=8)) != answers[0]


def test_a_cache_that_grows_while_it_is_written(
    engines: tuple[Engine, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = Conversation.ask("hello " * 200)
    for engine in engines:
        monkeypatch.setattr(engine.model, "eos", frozenset())
    long = Sampling(max_tokens=700, repetition_penalty=1.05)
    assert said(engines[1].session(), talk, long)[0] == said(engines[0].session(), talk, long)[0]


def test_quantized_answers_are_the_cpus_exact_ones() -> None:
    talk = Conversation.ask("Describe this image.", (encode_image(opened(2)),))
    for bits in ("int4", "int8"):
        here = load("sketch", device="cuda", dtype="float32", quantize=bits)
        there = load("sketch", device="cpu", dtype="float32", quantize=bits, exact=True)
        assert said(here.session(), talk) == said(there.session(), talk)
        assert here.fallback_reason == ""


def test_statistics_add_up(engines: tuple[Engine, Engine]) -> None:
    events = list(engines[1].session().stream(Conversation.ask("hello"), GREEDY))
    stats = events[-1]
    assert isinstance(stats, GenerationStats)
    assert stats.completion_tokens == len({id(event) for event in events if isinstance(event, Token) and event.text})
    assert stats.prefill_seconds > 0
