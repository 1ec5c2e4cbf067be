"""An offloaded vision tower computes bitwise the same as one on the device."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mllama_cli.benchmark.random_network import random_network as random_shape
from mllama_cli.core.conversation import Conversation
from mllama_cli.core.events import LoadProgress, Notice
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.engine import Engine
from mllama_cli.engine.weights.offload import PLANS, OffloadPlan
from mllama_cli.engine.weights.offloaded_vision import OffloadedVision, host_blocks, to_host
from mllama_cli.model.mllama import MllamaForConditionalGeneration
from mllama_cli.quantization.linear import QuantizedLinear
from mllama_cli.quantization.rounding import quantize_matrix
from mllama_cli.quantization.schemes import Scheme
from tests.checkpoints import config_dict, random_network
from tests.engine.conftest import picture

CPU = torch.device("cpu")


def network(local: int = 4, layers: int = 2, hidden: int = 32) -> MllamaForConditionalGeneration:
    vision = {"num_hidden_layers": local, "num_global_layers": layers, "hidden_size": hidden}
    made = random_network(config_dict(vision={**vision, "intermediate_layers_indices": sorted({0, local - 1})}), seed=4)
    assert isinstance(made, MllamaForConditionalGeneration)
    return made


def streamed(made: MllamaForConditionalGeneration) -> OffloadedVision:
    tower = OffloadedVision(made.model.vision_model, CPU)
    assert sum(tower.pack()) == sum(p.nbytes for layer in tower._layers for p in layer.parameters())
    return tower


def pixels(tiles: int, seed: int, *, count: tuple[int, ...] = ()) -> torch.Tensor:
    return torch.randn(*count, tiles, 3, 56, 56, generator=torch.Generator().manual_seed(seed))


def equal(one: Any, other: Any) -> bool:
    return all(torch.equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize("joined", [False, True], ids=["three products", "joined"])
@pytest.mark.parametrize(("local", "layers"), [(4, 2), (3, 2), (1, 1), (2, 0), (1, 0)])
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_features_are_the_same(joined: bool, local: int, layers: int, mode: Callable[[], Any]) -> None:
    plain, ours = network(local, layers), network(local, layers)
    if joined:
        plain.model.vision_model.fuse_projections()
        ours.model.vision_model.fuse_projections()
    streamed(ours)
    with mode():
        for tiles, ratio, seed in ((1, 1, 0), (4, 6, 1), (2, 2, 2), (4, 6, 1)):
            image = pixels(tiles, seed)
            assert equal(ours.model.encode_image(image, ratio), plain.model.encode_image(image, ratio))


def test_one_product_makes_query_key_and_value_where_they_were_joined() -> None:
    made = network()
    made.model.vision_model.fuse_projections()
    tower = streamed(made)
    seen = []
    attention = tower._layers[1].self_attn
    project = attention.project

    def watched(x: torch.Tensor) -> torch.Tensor:
        assert attention.qkv_weight is not None
        seen.append(attention.qkv_weight.data_ptr() == attention.q_proj.weight.data_ptr())
        return project(x)

    attention.project = watched  # type: ignore[method-assign]
    made.model.encode_image(pixels(1, 0), 1)
    assert seen == [True]


def test_weights_are_views_of_a_buffer_only_while_their_layer_runs() -> None:
    made = network()
    tower = streamed(made)
    homes = [{name: p.data_ptr() for name, p in layer.named_parameters()} for layer in tower._layers]
    buffers = [range(b.data_ptr(), b.data_ptr() + b.nbytes) for b in tower._buffers]
    places = []
    for index, layer in enumerate(tower._layers):
        layer.mlp.register_forward_pre_hook(
            lambda mlp, _, index=index: places.append(mlp.fc1.weight.data_ptr() in buffers[index % 2])
        )
    made.model.encode_image(pixels(2, 0), 2)
    assert places == [True] * 6
    assert homes == [{name: p.data_ptr() for name, p in layer.named_parameters()} for layer in tower._layers]
    assert sum(buffer.nbytes for buffer in tower._buffers) < 3 * max(
        sum(p.nbytes for p in layer.parameters()) for layer in tower._layers
    )


def test_a_failed_or_abandoned_image_does_not_affect_later_ones() -> None:
    plain, ours = network(), network()
    tower = streamed(ours)
    expected = plain.model.encode_image(pixels(4, 3), 6)
    for at in range(6):
        handle = tower._layers[at].mlp.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            ours.model.encode_image(pixels(4, 1), 6)
        handle.remove()
        assert equal(ours.model.encode_image(pixels(4, 3), 6), expected)
        steps = ours.model.encode_image_steps(pixels(4, 1), 6)
        for _ in range(at):
            next(steps)
        steps.close()
        assert equal(ours.model.encode_image(pixels(4, 3), 6), expected)


def test_packed_layers_can_be_offloaded_too() -> None:
    plain, ours = network(hidden=64), network(hidden=64)
    for made in (plain, ours):
        for layer in made.model.vision_model.transformer.layers:
            for owner, name in ((layer.mlp, "fc1"), (layer.self_attn, "q_proj")):
                old = getattr(owner, name)
                new = QuantizedLinear(old.in_features, old.out_features, Scheme(8, 32), bias=old.bias is not None)
                new.fill(quantize_matrix(old.weight, new.scheme, "rtn").weight)
                new.bias = old.bias
                setattr(owner, name, new)
    streamed(ours)
    with torch.inference_mode():
        assert equal(ours.model.encode_image(pixels(4, 3), 6), plain.model.encode_image(pixels(4, 3), 6))


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: str(plan) or "all on the device")
def test_an_engine_answers_the_same_whatever_is_offloaded(engine: Engine, plan: OffloadPlan) -> None:
    other = Engine(engine.path, "tiny", device="cpu")
    assert other.model.weights is not None
    other.model.weights.plan = plan
    events = [*other.load_weights(), *other.load_weights(vision=True)]
    assert [event for event in events if isinstance(event, Notice)] == ([Notice(plan.notice)] if plan.notice else [])
    last = events[-1]
    assert isinstance(last, LoadProgress)
    assert last.done == last.total
    progress = [event.done for event in events if isinstance(event, LoadProgress)]
    assert min(progress) == 0
    image = picture("blue", (200, 180))
    tiles = engine.processor.tiles(image)
    encoded = [e.model.vision.encode(tiles.pixel_values, tiles.aspect_ratio_id) for e in (other, engine)]
    assert equal(*encoded)
    talk, sampling = Conversation.ask("What is this?", (image,)), Sampling(max_tokens=12)
    assert [reply.text for reply in other.answer_batch([talk, talk], sampling)] == [
        reply.text for reply in engine.answer_batch([talk, talk], sampling)
    ]


def test_a_random_shape_follows_a_plan(engine: Engine) -> None:
    made = random_shape(engine.config, dtype=torch.float32, device=CPU, quantize="int4", plan=PLANS[-1])
    assert made.model.vision_model.transformer.layers[0]._forward_pre_hooks
    assert torch.isfinite(made(torch.tensor([[1, 2, 3]]))).all()
    keys = made.model.encode_image(pixels(4, 0), 6)
    assert all(torch.isfinite(tensor).all() for pair in keys for tensor in pair)


def test_blocks_share_allocations_so_that_little_is_lost_to_powers_of_two() -> None:
    size = 39_352_320 // 1024  # as the released tower's layers, but small
    blocks = host_blocks(40, size, CPU)
    assert len(blocks) == 40
    assert {block.nbytes for block in blocks} == {size}
    held = {block.untyped_storage().data_ptr(): block.untyped_storage().nbytes() for block in blocks}
    assert sum(1 << (nbytes - 1).bit_length() for nbytes in held.values()) < 1.1 * 40 * size
    assert torch.equal(to_host(torch.arange(5), torch.float32, CPU), torch.arange(5.0))
    assert host_blocks(0, size, CPU) == []
