"""One model over two GPUs answers as on a CPU; needs two, and is skipped with fewer."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch

from mllama_cli.benchmark.decode import benchmark
from mllama_cli.benchmark.random_network import random_model
from mllama_cli.core.config import MllamaConfig
from mllama_cli.core.conversation import Conversation
from mllama_cli.core.errors import EngineError
from mllama_cli.core.events import Token
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.engine import Engine, load
from mllama_cli.engine.session import Session
from tests.checkpoints import config_dict, make_checkpoint
from tests.engine.conftest import picture

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]
ASK = Conversation.ask("What is this?", (picture("red"),))
TEXT = Conversation.ask("Hello there")
TWO = "cuda:0,cuda:1"
WIDE = {"hidden_size": 256, "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 512}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("models") / "wide", config_dict(text=WIDE), seed=3)


@pytest.fixture(scope="module")
def cpu(folder: Path) -> Engine:
    return load(folder, device="cpu", dtype="float32", vision=True)


@pytest.fixture(scope="module")
def two(folder: Path) -> Iterator[Engine]:
    torch.backends.cuda.matmul.allow_tf32 = False
    engine = load(folder, device=TWO, dtype="float32", vision=True)
    yield engine
    assert engine.model.team is not None
    engine.model.team.close()


def ids(session: Session, conversation: Conversation, sampling: Sampling, stop: int | None = None) -> list[int]:
    tokens: Iterator[int] = (e.id for e in session.stream(conversation, sampling) if isinstance(e, Token))
    return list(islice(tokens, stop))


@pytest.mark.parametrize("conversation", [TEXT, ASK], ids=["text", "image"])
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_tokens=300),
        Sampling(max_tokens=60, repetition_penalty=1.4),
        Sampling(max_tokens=60, temperature=1, seed=4),
    ],
    ids=["greedy", "penalty", "drawn"],
)
def test_captured_answers_equal_the_cpus(
    cpu: Engine, two: Engine, conversation: Conversation, sampling: Sampling
) -> None:
    answer = ids(two.session(), conversation, sampling)
    assert two.fallback_reason == ""
    assert answer == ids(cpu.session(), conversation, sampling)


def test_small_tensors_go_through_the_other_gpus_memory_where_that_is_possible(two: Engine) -> None:
    assert two.model.team is not None
    assert two.model.team.group.is_one_shot == torch.cuda.can_device_access_peer(0, 1)


def test_an_abandoned_answer_leaves_the_caches_usable(cpu: Engine, two: Engine) -> None:
    sampling = Sampling(max_tokens=40)
    for conversation in (TEXT, ASK):
        session = two.session()
        ids(session, conversation, sampling, stop=7)
        assert ids(session, conversation, sampling) == ids(cpu.session(), conversation, sampling)
        longer = conversation.with_assistant("abc").with_user("And now?")
        assert ids(session, longer, sampling) == ids(cpu.session(), longer, sampling)


def test_a_batch_equals_the_cpus(cpu: Engine, two: Engine) -> None:
    asked, sampling = [ASK, TEXT, Conversation.ask("Why?", (picture("blue"), picture("red")))], Sampling(max_tokens=20)
    assert two.answer_batch(asked, sampling) == cpu.answer_batch(asked, sampling)


@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
def test_packed_and_16_bit_weights_are_captured(quantize: str | None) -> None:
    text = {**WIDE, "hidden_size": 1024, "intermediate_size": 2048}
    first, *others = (torch.device("cuda", index) for index in range(2))
    model, _ = random_model(
        MllamaConfig.from_dict(config_dict(text=text)),
        dtype=torch.bfloat16,
        device=first,
        others=others,
        quantize=quantize,
    )
    assert model.team is not None
    try:
        figures = [figure.name for figure in benchmark(model, tokens=8)]
        assert "decode, after an image" in figures
        assert model.decoder.fallback_reason == ""  # so the self-check has compared a step with the network
    finally:
        model.team.close()


def test_a_rank_that_is_killed_is_noticed(folder: Path) -> None:
    engine = load(folder, device=TWO, dtype="float32", vision=True)
    assert engine.model.team is not None
    stream = engine.session().stream(ASK, Sampling(max_tokens=2000))
    for _ in range(20):
        next(stream)
    (member,) = engine.model.team.crew.members
    assert member.process is not None
    member.process.send_signal(signal.SIGKILL)
    assert engine.model.team.crew.lost.wait(5)
    with pytest.raises(EngineError):
        list(engine.session().stream(TEXT, Sampling(max_tokens=2)))


def test_several_teams_one_after_the_other_and_at_once(folder: Path, cpu: Engine, two: Engine) -> None:
    sampling = Sampling(max_tokens=20)
    expected = ids(cpu.session(), ASK, sampling)
    for _ in range(2):
        engine = load(folder, device=TWO, dtype="float32", vision=True)
        assert ids(engine.session(), ASK, sampling) == expected
        assert ids(two.session(), ASK, sampling) == expected
        assert engine.model.team is not None
        assert engine.model.team.group.is_one_shot == torch.cuda.can_device_access_peer(0, 1)
        engine.model.team.close()
    assert ids(two.session(), ASK, sampling) == expected


ANSWER = """
import sys
from mllama_cli.core.conversation import Conversation
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.engine import load
engine = load(sys.argv[1], device=sys.argv[2], dtype="float32")
stream = engine.session().stream(Conversation.ask("Hello there"), Sampling(max_tokens=200))
for _ in range(30):
    next(stream)
print("ending", flush=True)
if sys.argv[3] == "error":
    raise ValueError("of the program")
"""


@pytest.mark.parametrize("end", ["amid an answer", "error"])
def test_a_process_ends_soon_although_nothing_is_closed(folder: Path, end: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ANSWER, str(folder), TWO, end],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ending\n"
            _, errors = process.communicate(timeout=10)
        finally:
            process.kill()
    assert process.returncode == (1 if end == "error" else 0), errors
    assert "destroy_process_group" not in errors
