"""One seed, one text: alone on a CPU, from captured graphs, and in a mixed batch. ``pytest -m gpu tests/gpu``."""

import warnings
from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mllama_cli.core.conversation import Conversation
from mllama_cli.core.events import Token
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.batch.request import BatchRequest
from mllama_cli.engine.batch.run import run_batch
from mllama_cli.engine.cuda.capture import capture
from mllama_cli.engine.engine import Engine, load
from mllama_cli.engine.sampling import GREEDY, ChosenToken, Method, Sampler
from tests.checkpoints import config_dict, make_checkpoint
from tests.engine.conftest import picture

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
VOCAB, STEPS, REQUESTS = 128_256, 20, 32
CPU = torch.device("cpu")
SETTINGS: list[Callable[..., Sampling]] = [
    Sampling,
    partial(Sampling, temperature=0.6, top_p=0.9),
    partial(Sampling, temperature=1.2, top_k=50),
    partial(Sampling, repetition_penalty=1.3),
    partial(Sampling, temperature=1.0, min_p=0.02, repetition_penalty=1.1),
    partial(Sampling, temperature=1.5, frequency_penalty=0.5, presence_penalty=0.5, top_k=200, top_p=0.95),
    partial(Sampling, logit_bias={11: 5.0, 12: -100.0}),
    partial(Sampling, temperature=1.0, logit_bias={11: 5.0}, logprobs=4),
    partial(Sampling, temperature=1.0),
]


def settings_of(request: int, max_tokens: int = STEPS) -> Sampling:
    return SETTINGS[request % len(SETTINGS)](seed=request, max_tokens=max_tokens)


@pytest.fixture(scope="module")
def gpu_device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture(scope="module")
def logits() -> Tensor:
    """[steps, requests, vocabulary], rounded to bfloat16 so that many are equal."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([torch.randn(REQUESTS, VOCAB, generator=generator) * 3 for _ in range(STEPS)])
    return drawn.bfloat16()


@pytest.fixture(scope="module")
def expected(logits: Tensor) -> list[list[ChosenToken]]:
    """What each request chooses alone on the CPU."""
    return [alone(request, logits[:, request], CPU) for request in range(REQUESTS)]


def alone(request: int, logits: Tensor, device: torch.device) -> list[ChosenToken]:
    sampler = Sampler(1, VOCAB, device)
    sampler.admit(0, settings_of(request), (request, 5))
    return [token for row in logits.to(device) for token in sampler.choose(row[None]) if isinstance(token, ChosenToken)]


def ids(tokens: list[ChosenToken]) -> list[int]:
    return [token.id for token in tokens]


def test_identical_logits_alone_on_the_gpu(
    logits: Tensor, expected: list[list[ChosenToken]], gpu_device: torch.device
) -> None:
    for request in range(len(SETTINGS)):
        assert ids(alone(request, logits[:, request], gpu_device)) == ids(expected[request])


def test_identical_logits_in_a_mixed_batch(
    logits: Tensor, expected: list[list[ChosenToken]], gpu_device: torch.device
) -> None:
    sampler = Sampler(REQUESTS, VOCAB, gpu_device)
    for request in range(REQUESTS):
        sampler.admit(request, settings_of(request), (request, 5))
    answers: list[list[ChosenToken]] = [[] for _ in range(REQUESTS)]
    running = list(range(REQUESTS))
    for step in logits.to(gpu_device):
        for request, token in zip(running, sampler.choose(step[running]), strict=True):
            assert isinstance(token, ChosenToken)
            answers[request].append(token)
        if len(answers[0]) % 3 == 0:  # some leave, and others move into their rows
            sampler.release(1, len(running) - 1)
            running[1] = running[-1]
            running.pop()
    for ours, theirs in zip(answers, expected, strict=True):
        assert ids(ours) == ids(theirs[: len(ours)])
        for one, other in zip(ours, theirs, strict=False):
            assert (one.logprob is None) == (other.logprob is None)
            if one.logprob is not None:
                assert one.logprob == pytest.approx(other.logprob, abs=1e-4)


def test_identical_logits_from_a_captured_graph(
    logits: Tensor, expected: list[list[ChosenToken]], gpu_device: torch.device
) -> None:
    stream = torch.cuda.Stream(gpu_device)
    for request in range(len(SETTINGS)):
        sampling = settings_of(request)
        method = Method.of(sampling)
        if method == GREEDY:
            continue
        sampler, row = Sampler(1, VOCAB, gpu_device), torch.zeros(1, VOCAB, dtype=logits.dtype, device=gpu_device)
        with torch.inference_mode():
            graph, tokens = capture(partial(sampler.tokens, row, sampler.all_rows, method), stream)
        sampler.admit(0, sampling, (request, 5))
        chosen = []
        for step in logits[:, request]:
            sampler.refill(0)
            row.copy_(step[None])
            graph.replay()
            chosen.append(int(tokens))
        assert chosen == ids(expected[request])


def test_a_choice_on_the_device_makes_the_host_wait_for_nothing(logits: Tensor, gpu_device: torch.device) -> None:
    sampler = Sampler(REQUESTS, VOCAB, gpu_device)
    for request in range(REQUESTS):
        sampler.admit(request, settings_of(request), (request, 5))
    rows = logits[0].to(gpu_device)
    sampler.choose(rows)
    torch.cuda.synchronize()
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # the mode is called a prototype
        torch.cuda.set_sync_debug_mode("error")
        try:
            for method in (Method(True, False), Method(False, True), Method(True, True)):
                sampler.tokens(rows, sampler.all_rows, method)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = config_dict(text={"hidden_size": 128, "num_attention_heads": 4})
    return make_checkpoint(tmp_path_factory.mktemp("models") / "tiny", config, seed=3)


def test_texts_alone_in_captured_graphs_and_in_a_mixed_batch(folder: Path) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    cpu = load(folder, device="cpu", dtype="float32", vision=True)
    gpu = load(folder, device="cuda", dtype="float32", vision=True)

    def request(engine: Engine, number: int) -> BatchRequest:
        conversation = Conversation.ask(f"What is this? {number}", (picture("red"),) if number % 2 else ())
        return BatchRequest(number, engine.processor(conversation), sampling=settings_of(number, 10 + number))

    def answer(engine: Engine, number: int) -> list[Token]:
        asked = request(engine, number)
        events = engine.session().stream_inputs(asked.inputs, asked.sampling)
        return [event for event in events if isinstance(event, Token) and event.id not in engine.model.eos]

    expected, ours = ([answer(engine, number) for number in range(REQUESTS)] for engine in (cpu, gpu))
    assert gpu.fallback_reason == ""
    texts = [tuple(token.id for token in tokens) for tokens in expected]
    assert [tuple(token.id for token in tokens) for tokens in ours] == texts
    for one, other in zip(chain.from_iterable(ours), chain.from_iterable(expected), strict=True):
        assert one.logprob == (None if other.logprob is None else pytest.approx(other.logprob, abs=1e-3))
        assert len(one.top_logprobs) == len(other.top_logprobs)
    requests = [request(gpu, number) for number in range(REQUESTS)]
    for slots in (5, REQUESTS):
        replies = {reply.key: reply.ids for reply in run_batch(gpu.model, requests, slots=slots)}
        assert [replies[number] for number in range(REQUESTS)] == texts
