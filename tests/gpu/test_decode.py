"""Answers from captured graphs against the CPU's, on a small random model in float32: the same tokens."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch

from mllama_cli.core.conversation import Conversation
from mllama_cli.core.events import Token
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.cuda.backend import CapturedDecoder
from mllama_cli.engine.cuda.decode import GraphDecoder
from mllama_cli.engine.cuda.self_check import relative_error
from mllama_cli.engine.engine import Engine, load
from mllama_cli.engine.session import Session
from tests.checkpoints import config_dict, make_checkpoint
from tests.engine.conftest import picture

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
ASK = Conversation.ask("What is this?", (picture("red"),))
TEXT = Conversation.ask("Hello there")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = config_dict(text={"hidden_size": 128, "num_attention_heads": 4})
    return make_checkpoint(tmp_path_factory.mktemp("models") / "tiny", config, seed=3)


@pytest.fixture(scope="module")
def cpu(folder: Path) -> Engine:
    return load(folder, device="cpu", dtype="float32", vision=True)


@pytest.fixture(scope="module")
def gpu(folder: Path) -> Engine:
    torch.backends.cuda.matmul.allow_tf32 = False
    return load(folder, device="cuda", dtype="float32", vision=True)


def ids(session: Session, conversation: Conversation, sampling: Sampling, stop: int | None = None) -> list[int]:
    tokens: Iterator[int] = (e.id for e in session.stream(conversation, sampling) if isinstance(e, Token))
    return list(islice(tokens, stop))


@pytest.mark.parametrize("conversation", [TEXT, ASK], ids=["text", "image"])
@pytest.mark.parametrize("penalty", [1.0, 1.4])
def test_greedy_answers_equal_the_cpus(cpu: Engine, gpu: Engine, conversation: Conversation, penalty: float) -> None:
    sampling = Sampling(max_tokens=300, repetition_penalty=penalty)  # beyond the first growth of the cache
    answer = ids(gpu.session(), conversation, sampling)
    assert gpu.fallback_reason == ""
    assert answer == ids(cpu.session(), conversation, sampling)


def test_an_abandoned_answer_leaves_the_caches_usable(cpu: Engine, gpu: Engine) -> None:
    sampling = Sampling(max_tokens=40)
    for conversation in (TEXT, ASK):
        session = gpu.session()
        ids(session, conversation, sampling, stop=7)
        assert session.cache.lengths[0] >= len(session.ids)
        assert ids(session, conversation, sampling) == ids(cpu.session(), conversation, sampling)
        longer = conversation.with_assistant("abc").with_user("And now?")
        assert ids(session, longer, sampling) == ids(cpu.session(), longer, sampling)


def test_two_interleaved_answers_do_not_disturb_each_other(cpu: Engine, gpu: Engine) -> None:
    sampling = Sampling(max_tokens=30)
    streams = [gpu.session().stream(c, sampling) for c in (TEXT, ASK)]
    tokens = [(e.id for e in stream if isinstance(e, Token)) for stream in streams]
    pairs = list(zip(*tokens, strict=False))
    for which, conversation in enumerate((TEXT, ASK)):
        expected = ids(cpu.session(), conversation, sampling)
        assert [pair[which] for pair in pairs] == expected[: len(pairs)]


@pytest.mark.parametrize("sees", [False, True])
def test_kernels_are_checked_against_the_network_when_they_are_first_built(
    gpu: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sees: bool
) -> None:
    decoder = GraphDecoder(gpu.network, torch.float32, gpu.device)
    assert relative_error(decoder, gpu.network, with_images=sees) < 1e-3

    monkeypatch.setattr("mllama_cli.engine.cuda.build_cache.cache_folder", lambda: tmp_path)
    monkeypatch.setattr("mllama_cli.engine.cuda.self_check.MAX_RELATIVE_ERROR", -1.0)
    monkeypatch.delenv("MLLAMA_STRICT_KERNELS", raising=False)
    captured = CapturedDecoder(gpu.network, torch.float32, gpu.device)
    notices = list(captured.prepare(with_images=sees, sampling=Sampling()))
    assert len(notices) == 1
    assert "do not compute" in captured.fallback_reason
    monkeypatch.undo()
    monkeypatch.setattr("mllama_cli.engine.cuda.build_cache.cache_folder", lambda: tmp_path)
    captured = CapturedDecoder(gpu.network, torch.float32, gpu.device)
    assert len(list(captured.prepare(with_images=sees, sampling=Sampling()))) == 1
    assert captured.fallback_reason == ""
    assert list(captured.prepare(with_images=sees, sampling=Sampling())) == []


def test_a_seed_repeats_an_answer(gpu: Engine) -> None:
    first, again, other = (
        ids(gpu.session(), TEXT, Sampling(temperature=1.2, top_p=0.95, seed=seed, max_tokens=40)) for seed in (1, 1, 2)
    )
    assert first == again != other


def test_a_replayed_tower_gives_what_the_first_run_gave(gpu: Engine) -> None:
    tiles = gpu.processor.tiles(picture("blue", (100, 60)))
    first, captured, replayed = (gpu.model.vision.encode(tiles.pixel_values, tiles.aspect_ratio_id) for _ in range(3))
    for one, two, three in zip(first, captured, replayed, strict=True):
        for a, b, c in zip(one, two, three, strict=True):
            assert torch.equal(b, c)
            assert (a - b).norm() / a.norm() < 1e-5


def test_a_gpu_normalises_bytes_as_the_host_does(gpu: Engine) -> None:
    tiles = gpu.processor.tiles(picture("blue", (100, 60)))
    assert torch.equal(tiles.pixel_values_on(gpu.device).cpu(), tiles.pixel_values)


def test_memory_is_stable_over_a_long_answer(gpu: Engine) -> None:
    sampling = Sampling(max_tokens=1500)
    ids(gpu.session(), TEXT, sampling)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(2):
        ids(gpu.session(), TEXT, sampling)
    assert torch.cuda.memory_allocated() <= before + 2**20


def test_uploaded_weights_equal_the_files(gpu: Engine, cpu: Engine) -> None:
    ours = dict(gpu.network.named_parameters())
    for name, parameter in cpu.network.named_parameters():
        assert torch.equal(ours[name].cpu(), parameter), name
