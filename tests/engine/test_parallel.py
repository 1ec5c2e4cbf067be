"""A model over several processes computes what one process computes, and ends with any of them."""

import gc
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mllama_cli.benchmark.captions import caption_rate
from mllama_cli.benchmark.decode import benchmark, token_bytes
from mllama_cli.benchmark.random_network import random_model
from mllama_cli.core.config import MllamaConfig
from mllama_cli.core.conversation import Conversation
from mllama_cli.core.errors import EngineError, UsageError
from mllama_cli.core.events import Token
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.engine import Engine, load
from mllama_cli.engine.model import LoadedModel
from mllama_cli.engine.parallel.crew import begin
from mllama_cli.engine.weights import float8_vision
from mllama_cli.model.visibility import image_spans
from tests.checkpoints import config_dict, make_checkpoint
from tests.engine.conftest import picture
from tests.quantization.running import quantize_four

QUESTIONS = ("What is this?", "And what is that, in a longer question?", "Why?")


def shape(random: random.Random) -> dict[str, int]:
    """Return a random shape that four ranks can share."""
    kv_heads = 4 * random.choice((1, 2))
    heads = kv_heads * random.choice((1, 2, 3))
    return {
        "num_key_value_heads": kv_heads,
        "num_attention_heads": heads,
        "hidden_size": heads * 8 * random.choice((1, 2)),
        "intermediate_size": 32 * random.choice((1, 3, 4)),
    }


def over(folder: Path, count: int, **options: object) -> Engine:
    """Load a model on ``count`` CPU ranks."""
    return load(folder, device=",".join(["cpu"] * count), vision=True, **options)  # type: ignore[arg-type]


def logits(model: LoadedModel, ids: list[int], images: int) -> Tensor:
    """Return the logits after a prompt with some images, read in chunks."""
    pixels = torch.Generator().manual_seed(1)
    encoded = [
        model.vision.encode(torch.randn(tiles, 3, 56, 56, generator=pixels), tiles) for tiles in range(1, 1 + images)
    ]
    cache, cross = model.new_cache(), model.vision.join([encoded])
    prompt = [*ids[:3], *[model.config.image_token_index] * images, *ids]
    spans = image_spans(prompt, model.config.image_token_index)
    steps = model.decoder.prefill(prompt, cache, cross, spans, 16)
    return torch.cat([step for _, step in steps])


def texts(engine: Engine, sampling: Sampling) -> list[str]:
    """Return answers in a session that goes on, and of a batch."""
    session, answers = engine.session(), []
    for question in QUESTIONS[:2]:
        conversation = Conversation.ask(question, (picture("red"), picture("blue")))
        answers += ["".join(event.text for event in session.stream(conversation, sampling) if isinstance(event, Token))]
    several = [Conversation.ask(text, (picture("green"),) * (index != 1)) for index, text in enumerate(QUESTIONS)]
    return answers + [reply.text for reply in engine.answer_batch(several, sampling)]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = config_dict(shape(random.Random(1)))
    return make_checkpoint(tmp_path_factory.mktemp("models") / "wide", config, seed=5)


@pytest.fixture(scope="module")
def alone(wide: Path) -> Engine:
    return load(wide, device="cpu", vision=True)


@pytest.fixture(scope="module")
def team(wide: Path) -> Iterator[Engine]:
    engine = over(wide, 2)
    yield engine
    assert engine.model.team is not None
    engine.model.team.close()


def test_logits_are_those_of_one_process(alone: Engine, team: Engine) -> None:
    ids = list(range(40))
    for images in (0, 1, 3):
        torch.testing.assert_close(logits(team.model, ids, images), logits(alone.model, ids, images), atol=1e-5, rtol=0)


@pytest.mark.parametrize("sampling", [Sampling(max_tokens=12), Sampling(max_tokens=12, temperature=0.8, seed=3)])
def test_answers_are_those_of_one_process(alone: Engine, team: Engine, sampling: Sampling) -> None:
    assert texts(team, sampling) == texts(alone, sampling)


def test_rounded_images_are_those_of_one_process(wide: Path) -> None:
    one, two = load(wide, device="cpu", vision=True, image_kv="fp8"), over(wide, 2, image_kv="fp8")
    assert texts(two, Sampling(max_tokens=12)) == texts(one, Sampling(max_tokens=12))


def test_images_in_float8_are_those_of_one_process(wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first rank encodes them for all."""
    monkeypatch.setattr(float8_vision, "has_float8", lambda device, dtype: True)
    one, two = load(wide, device="cpu", vision=True, fast=True), over(wide, 2, fast=True)
    assert texts(two, Sampling(max_tokens=12)) == texts(one, Sampling(max_tokens=12))


def test_probabilities_are_those_of_one_process(alone: Engine, team: Engine) -> None:
    conversation = Conversation.ask("Which?", (picture(),))
    both = [engine.session().probabilities(conversation, ["yes", "no"]) for engine in (alone, team)]
    assert both[1] == pytest.approx(both[0], abs=1e-5)


def test_weights_of_16_bits_compute_what_one_process_computes(wide: Path) -> None:
    one, two = load(wide, device="cpu", vision=True, dtype="bfloat16"), over(wide, 2, dtype="bfloat16")
    ids = list(range(30))
    torch.testing.assert_close(logits(two.model, ids, 1), logits(one.model, ids, 1), atol=0.1, rtol=0.1)


def test_weights_load_when_they_are_needed(wide: Path, alone: Engine) -> None:
    engine = load(wide, device="cpu,cpu")  # for text
    assert engine.model.team is not None
    assert not engine.model.vision_loaded
    assert texts(engine, Sampling(max_tokens=4)) == texts(alone, Sampling(max_tokens=4))
    assert engine.model.vision_loaded


def test_an_answer_can_be_abandoned_at_any_event(alone: Engine, team: Engine) -> None:
    conversation, sampling = Conversation.ask("What is this?", (picture(),)), Sampling(max_tokens=6)
    session = team.session()
    for count in range(1, 8):
        stream = session.stream(conversation, sampling)
        for _ in range(count):
            next(stream)
        stream.close()
    assert texts(team, sampling) == texts(alone, sampling)


def test_caches_end_with_those_of_the_first_process(team: Engine) -> None:
    assert team.model.team is not None
    names = team.model.team.names
    for _ in range(3):
        list(team.session().stream(Conversation.ask("What is this?", (picture(),)), Sampling(max_tokens=2)))
    gone = names.pending
    list(team.session().stream(Conversation.ask("Text"), Sampling(max_tokens=2)))
    assert gone > 0
    assert names.pending < gone


@pytest.mark.slow
@pytest.mark.parametrize(("form", "seed"), [*zip(["plain", "int4", "int8", "packed"] * 2, range(8), strict=True)])
def test_random_shapes(tmp_path: Path, form: str, seed: int) -> None:
    choice = random.Random(seed)
    folder = make_checkpoint(tmp_path / "model", config_dict(shape(choice)), seed=seed)
    if form == "packed":
        quantize_four(str(folder), str(tmp_path / "packed"))
        folder = tmp_path / "packed"
    quantize = form if form.startswith("int") else None
    one = load(folder, device="cpu", vision=True, quantize=quantize, exact=True)
    several = over(folder, choice.choice((2, 4)), quantize=quantize, exact=True)
    ids = [choice.randrange(256) for _ in range(choice.randrange(1, 50))]
    images = choice.randrange(4)
    torch.testing.assert_close(logits(several.model, ids, images), logits(one.model, ids, images), atol=1e-5, rtol=1e-5)


def test_random_weights_are_measured_over_ranks() -> None:
    config, cpu = MllamaConfig.from_dict(config_dict()), torch.device("cpu")
    model, _ = random_model(config, dtype=torch.float32, device=cpu, others=[cpu], quantize="int8")
    figures = {figure.name: figure for figure in benchmark(model, tokens=2)}
    alone, _ = random_model(config, dtype=torch.float32, device=cpu, quantize="int8")
    ours, whole = (token_bytes(each.network, with_images=False) for each in (model, alone))
    assert figures["decode, text"].nbytes == ours
    assert ours == pytest.approx(whole / 2, rel=0.05)
    assert caption_rate(model, tokens=8)[0] > 0


def test_a_number_of_devices_that_does_not_divide_the_heads(wide: Path) -> None:
    with pytest.raises(UsageError, match="cannot be cut over 3 devices: they do not divide its 4 key/value heads"):
        over(wide, 3)


@pytest.mark.parametrize("seed", range(3))
def test_a_rank_that_is_killed_ends_all_others(wide: Path, seed: int) -> None:
    engine = over(wide, 2)
    assert engine.model.team is not None
    members = engine.model.team.crew.members
    stream = engine.session().stream(Conversation.ask("What is this?", (picture(),)), Sampling(max_tokens=200))
    for _ in range((0, 3, 30)[seed]):
        next(stream)
    (process,) = [member.process for member in members]
    assert process is not None
    process.send_signal(signal.SIGKILL)
    with pytest.raises(EngineError, match=r"The process of rank 1, .* ended: killed by SIGKILL"):
        list(stream)
    with pytest.raises(EngineError):
        list(engine.session().stream(Conversation.ask("Again?"), Sampling(max_tokens=2)))


def test_a_rank_that_fails_says_why(wide: Path) -> None:
    engine = over(wide, 2)
    team = engine.model.team
    assert team is not None
    team.crew.send(team.names.write(("no such operation", ())))
    with pytest.raises(EngineError, match=r"rank 1, .* ended \(exit code 1\): AttributeError: .*no such operation"):
        list(engine.session().stream(Conversation.ask("Hello"), Sampling(max_tokens=2)))


def test_several_teams_one_after_the_other_and_at_once(wide: Path, alone: Engine, team: Engine) -> None:
    sampling = Sampling(max_tokens=4)
    expected = texts(alone, sampling)
    for _ in range(2):
        another = over(wide, 2)
        assert another.model.team is not None
        assert texts(another, sampling) == expected
        assert texts(team, sampling) == expected
        members = another.model.team.crew.members
        another.model.team.close()
        assert all(member.process is not None and member.process.poll() == 0 for member in members)
    assert texts(team, sampling) == expected


def test_a_team_that_nothing_holds_ends_its_processes(wide: Path) -> None:
    engine = over(wide, 2)
    assert engine.model.team is not None
    (process,) = [member.process for member in engine.model.team.crew.members]
    assert process is not None
    del engine
    gc.collect()
    assert process.poll() == 0


ENDING = """
import sys
from mllama_cli.core.conversation import Conversation
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.engine import load
engine = load(sys.argv[1], device="cpu,cpu")
stream = engine.session().stream(Conversation.ask("Hello there"), Sampling(max_tokens=200))
next(stream)
print(engine.model.team.crew.members[0].process.pid, flush=True)
if sys.argv[2] == "error":
    raise ValueError("of the program")
"""


@pytest.mark.parametrize("end", ["amid an answer", "error"])
def test_a_process_that_closes_nothing_ends_its_ranks(wide: Path, end: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENDING, str(wide), end], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == (1 if end == "error" else 0), done.stderr
    assert ("ValueError" in done.stderr) == (end == "error")
    assert "EngineError" not in done.stderr
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)


def test_processes_that_were_started_for_devices_that_cannot_be_used_are_ended(wide: Path) -> None:
    crew = begin("cpu,cpu,cpu")
    assert crew is not None
    with pytest.raises(UsageError, match="cannot be cut over 3 devices"):
        Engine(wide, "wide", device="cpu,cpu,cpu", crew=crew, load_soon=True)
    assert all(member.process is not None and member.process.poll() is not None for member in crew.members)


def test_an_engine_takes_processes_that_were_started_before_it(wide: Path, alone: Engine) -> None:
    crew = begin("cpu,cpu")
    assert crew is not None
    engine = Engine(wide, "wide", device="cpu,cpu", crew=crew, load_soon=True)
    assert list(engine.load_weights(vision=True))
    assert engine.model.team is not None
    assert engine.model.team.crew is crew
    sampling = Sampling(max_tokens=4)
    assert texts(engine, sampling) == texts(alone, sampling)


def test_no_process_is_started_for_one_device_or_an_unknown_number() -> None:
    assert begin("cpu") is None
    assert begin("cuda:all") is None


def test_an_engine_whose_weights_are_not_wanted_yet_starts_no_process(wide: Path) -> None:
    engine = Engine(wide, "wide", device="cpu,cpu")
    assert engine.model.team is not None
    assert not engine.model.team.crew.members
