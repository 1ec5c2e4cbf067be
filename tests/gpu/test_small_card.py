"""An 8 GB card, played by a part of a large one: ``pytest -m gpu -s tests/gpu/test_small_card.py``.

The 11B shape with random int4 weights runs within its memory, and offloading changes no answer.
"""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mllama_cli.benchmark.captions import caption_rate
from mllama_cli.benchmark.decode import prefilled, random_ids
from mllama_cli.benchmark.gpu_fit import usable_bytes
from mllama_cli.benchmark.random_network import model_without_tokenizer, random_network
from mllama_cli.core.conversation import Conversation
from mllama_cli.core.events import LoadProgress, Notice, Token
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.device import free_bytes
from mllama_cli.engine.engine import Engine, load
from mllama_cli.engine.model import LoadedModel
from mllama_cli.engine.vision import require_vision
from mllama_cli.engine.weights import loader
from mllama_cli.engine.weights.memory import choose_prefill_chunk, min_working_bytes
from mllama_cli.engine.weights.offload import OffloadPlan, WeightSizes, choose_plan, sizes_of_shape
from mllama_cli.engine.weights.offloaded_vision import layers_of
from mllama_cli.engine.weights.shapes import SHAPES
from mllama_cli.kernels.ops import embedding
from mllama_cli.model.image_kv import LayerKV
from mllama_cli.model.mllama import MllamaForConditionalGeneration
from tests.checkpoints import config_dict, make_checkpoint
from tests.engine.conftest import picture

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(
        not hasattr(torch.cuda, "get_per_process_memory_fraction"), reason="this torch cannot say its memory limit"
    ),
    pytest.mark.timeout(600),
]
BOTH = OffloadPlan(embeddings=True, vision=True)
GIB = 2**30
PROMPT_TOKENS = 3000
"""Several passes where memory is small."""


class Card:
    """A part of this GPU; what other tests hold of it does not count."""

    def __init__(self, limit: int) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device())
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        free, self.total = torch.cuda.mem_get_info(self.device)
        if free < limit:
            pytest.skip(f"needs {limit / GIB:.1f} GiB of free GPU memory")
        self.held = torch.cuda.memory_reserved(self.device)
        self.limit = limit
        torch.cuda.set_per_process_memory_fraction(min(1.0, (limit + self.held) / self.total), self.device)
        torch.cuda.reset_peak_memory_stats(self.device)

    @property
    def peak(self) -> int:
        """The peak of torch's memory in bytes."""
        return torch.cuda.max_memory_reserved(self.device) - self.held

    def give_back(self) -> None:
        torch.cuda.set_per_process_memory_fraction(1.0, self.device)
        gc.collect()
        torch.cuda.empty_cache()


@pytest.fixture(scope="module")
def card() -> Iterator[Card]:
    played = Card(usable_bytes(8))
    yield played
    played.give_back()


@pytest.fixture(scope="module")
def model(card: Card) -> LoadedModel:
    """The 11B shape in int4, placed as the card's memory asks for."""
    config, dtype = SHAPES["11b"], torch.bfloat16
    weights, work = sizes_of_shape(config, "int4"), min_working_bytes(config, dtype.itemsize)
    plan = choose_plan(weights, work, free_bytes(card.device))
    assert plan == BOTH
    before = torch.cuda.memory_allocated(card.device)
    torch.manual_seed(0)
    network = random_network(config, dtype=dtype, device=card.device, quantize="int4", plan=plan)
    torch.cuda.synchronize()
    gc.collect()
    torch.cuda.empty_cache()
    taken = torch.cuda.memory_allocated(card.device) - before
    assert abs(taken - weights.on_gpu(plan)) < 50 * 2**20, "the plan knows what weights take"
    chunk = choose_prefill_chunk(config, dtype.itemsize, "cuda", free_bytes(card.device))
    return model_without_tokenizer(network, config, dtype=dtype, device=card.device, prefill_chunk=chunk)


def same(one: list[LayerKV], other: list[LayerKV]) -> bool:
    return all(torch.equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))


def test_free_memory_is_what_the_limit_leaves(card: Card) -> None:
    free = free_bytes(card.device)
    assert free <= card.limit + 256 * 2**20, "but for what is cached of other tests' memory"
    some = torch.empty(GIB, dtype=torch.uint8, device=card.device)
    assert abs(free - free_bytes(card.device) - GIB) < 64 * 2**20
    del some
    assert abs(free - free_bytes(card.device)) < 64 * 2**20, "what torch keeps of it counts as free"
    assert free_bytes(card.device, cached=False) < free - GIB // 2
    torch.cuda.empty_cache()


def test_an_image_is_encoded_through_two_buffers(card: Card, model: LoadedModel) -> None:
    pixels = torch.randn(4, 3, 560, 560, generator=torch.Generator().manual_seed(1))
    network, encode = require_vision(model.network), model.vision.encode
    at_once = encode(pixels, 6)
    assert all(torch.isfinite(tensor).all() for pair in at_once for tensor in pair)
    for _ in range(3):  # never captured
        assert same(encode(pixels, 6), at_once)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    encode(pixels, 6)
    end.record()
    torch.cuda.synchronize()
    print(f"\na picture of 4 tiles, tower offloaded: {start.elapsed_time(end):.1f} ms")
    # One layer after the other, and each has its own weights.
    layers = layers_of(network.model.vision_model)
    homes = [dict(layer.named_parameters()) for layer in layers]
    assert all(p.device.type == "cpu" and p.is_pinned() for home in homes for p in home.values())
    wrong, handles = [], []

    def checked(index: int) -> None:
        def hook(layer: torch.nn.Module, arguments: object) -> None:
            torch.cuda.synchronize()
            for name, parameter in layer.named_parameters():
                if not parameter.is_cuda or not torch.equal(parameter.cpu(), homes[index][name]):
                    wrong.append((index, name))

        handles.append(layers[index].register_forward_pre_hook(hook))

    for index in range(len(layers)):
        checked(index)
    try:
        one_by_one = encode(pixels, 6)
    finally:
        for handle in handles:
            handle.remove()
    assert wrong == []
    assert same(one_by_one, at_once), "uploads that overlap computing give the same numbers"
    assert card.peak <= card.limit


def test_a_chat_about_an_image_stays_within_the_card(card: Card, model: LoadedModel) -> None:
    config = model.config
    assert model.prefill_chunk == 1024
    pixels = torch.randn(4, 3, 560, 560, generator=torch.Generator().manual_seed(2))
    encoded = model.vision.encode(pixels, 6)
    ids = [config.image_token_index, *random_ids(model, PROMPT_TOKENS)]
    start = prefilled(model, ids, encoded, 64)
    assert torch.isfinite(start.logits).all()
    for _ in model.decoder.prepare(with_images=True, sampling=start.sampling):
        pass
    assert model.decoder.fallback_reason == "", "decoding must run from captured graphs"
    tokens = list(model.decoder.tokens(start))
    assert len(tokens) == 64
    assert all(0 <= token.id < config.text_config.vocab_size for token in tokens)
    torch.cuda.synchronize()
    print(f"\npeak {card.peak / GIB:.2f} GiB of {card.limit / GIB:.2f}")
    assert card.peak <= card.limit


def test_captions_in_slots_too(card: Card, model: LoadedModel) -> None:
    gc.collect()
    torch.cuda.empty_cache()
    rate, count, tiles = caption_rate(model, tokens=8)
    print(f"\n{count} captions at once, {rate:.1f} pictures/s; peak {card.peak / GIB:.2f} GiB")
    assert rate > 0
    assert tiles == 4
    assert card.peak <= card.limit


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = config_dict(text={"hidden_size": 128, "num_attention_heads": 4})
    return make_checkpoint(tmp_path_factory.mktemp("models") / "tiny", config, seed=3)


@pytest.fixture(scope="module")
def plain(folder: Path) -> Engine:
    return load(folder, device="cuda", dtype="float32", vision=True)


@pytest.fixture(params=["at once", "with the first picture"])
def small(folder: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """The same model on a GPU that has just enough memory for the smallest plan."""
    engine = Engine(folder, "tiny", device="cuda", dtype="float32")
    weights = engine.model.weights
    assert weights is not None
    sizes = WeightSizes.of({name: tensor.nbytes for name, tensor in weights.reader.tensors.items()})
    free = sizes.on_gpu(BOTH) + min_working_bytes(engine.config, engine.dtype.itemsize)
    monkeypatch.setattr(loader, "free_bytes", lambda device: free)
    events = list(engine.load_weights(vision=request.param == "at once"))
    assert weights.plan == BOTH
    assert [event for event in events if isinstance(event, Notice)] == [Notice(BOTH.notice)] * (
        not engine.model.lacks(vision=True)
    )
    last = events[-1]
    assert isinstance(last, LoadProgress)
    assert last.done == last.total
    return engine


def ids(engine: Engine, conversation: Conversation, sampling: Sampling) -> list[int]:
    return [event.id for event in engine.stream(conversation, sampling) if isinstance(event, Token)]


def test_offloading_changes_no_answer(plain: Engine, small: Engine) -> None:
    talks = [
        Conversation.ask("Hello there"),
        Conversation.ask("What is this?", (picture("red"),)),
        Conversation.ask("What are these?", (picture("blue", (200, 180)), picture("green", (30, 300)))),
    ]
    for sampling in (Sampling(max_tokens=60), Sampling(max_tokens=60, temperature=0.8, seed=4)):
        for talk in talks:
            assert ids(small, talk, sampling) == ids(plain, talk, sampling)
    assert small.fallback_reason == plain.fallback_reason == ""
    table = small.network.language_model.embed_tokens.weight
    assert table.device.type == "cpu"
    assert table.is_pinned()
    assert not small.model.lacks(vision=True)
    image = picture("yellow", (150, 60))
    tiles = plain.processor.tiles(image)
    assert isinstance(plain.network, MllamaForConditionalGeneration)
    with torch.inference_mode():
        expected = plain.network.model.encode_image(tiles.pixel_values, tiles.aspect_ratio_id)
    for _ in range(3):
        assert same(small.model.vision.encode(tiles.pixel_values, tiles.aspect_ratio_id), expected)
    batch = [talks[n % 3] for n in range(7)]
    replies = [reply.text for reply in small.answer_batch(batch, Sampling(max_tokens=20))]
    assert replies == [reply.text for reply in plain.answer_batch(batch, Sampling(max_tokens=20))]


def test_rows_of_a_pinned_table(card: Card) -> None:
    table = torch.randn(50, 1000).pin_memory()
    chosen = torch.tensor([[3, 49, 0], [7, 7, 1]], device=card.device)
    with torch.inference_mode():
        assert torch.equal(embedding(chosen, table).cpu(), table[chosen.cpu()])
        graph, static = torch.cuda.CUDAGraph(), chosen.clone()
        with torch.cuda.graph(graph):
            rows = embedding(static, table)
        static.copy_(chosen.flip(0))
        graph.replay()
        assert torch.equal(rows.cpu(), table[chosen.flip(0).cpu()])
    with torch.enable_grad():  # not by our kernels
        assert torch.equal(embedding(chosen, table).cpu(), table[chosen.cpu()])
