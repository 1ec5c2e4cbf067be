"""Compare the network with transformers on the same random weights, over many shapes."""

import pytest
import torch

from mllama_cli.engine.forward import forward
from mllama_cli.model.cache import CrossKVCache, KVCache
from mllama_cli.model.visibility import image_spans
from tests.checkpoints import VOCABULARY, config_dict, random_network, text_only_config
from tests.peers import peer_greedy, peer_logits, transformers_model

pytest.importorskip("transformers")
IMAGE = VOCABULARY

TEXT_SHAPES = {
    "grouped": {},
    "one key head": {"num_key_value_heads": 1},
    "no groups": {"num_key_value_heads": 4},
    "eight heads": {"num_attention_heads": 8, "num_key_value_heads": 2, "hidden_size": 128},
    "cross first and last": {"num_hidden_layers": 6, "cross_attention_layers": [0, 5]},
    "neighbouring cross layers": {"num_hidden_layers": 4, "cross_attention_layers": [1, 2]},
    "long wavelengths": {"rope_theta": 10000.0},
}
VISION_SHAPES = {
    "tile 56": {},
    "tile 112": {"image_size": 112},
    "wide head": {"attention_heads": 1, "hidden_size": 80, "intermediate_size": 112},
    "five features": {"num_hidden_layers": 7, "intermediate_layers_indices": [1, 2, 3, 5, 6]},
}
# (tiles high x wide) by aspect ratio id
TILES = {1: 1, 2: 2, 3: 3, 4: 4, 5: 2, 6: 4, 7: 3, 8: 4}


def picture(id_: int, size: int = 56, seed: int = 0) -> tuple[torch.Tensor, int]:
    generator = torch.Generator().manual_seed(seed * 100 + id_)
    return torch.randn(TILES[id_], 3, size, size, generator=generator), id_


def ids(length: int, seed: int = 0) -> list[int]:
    return torch.randint(0, 256, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, relative: float = 3e-6) -> None:
    error = (ours - theirs).norm() / theirs.norm()
    assert error < relative, f"relative error {error:.2e}"
    assert theirs.std() > 0.1, "the comparison must be of something"


@pytest.mark.parametrize("shape", TEXT_SHAPES)
@pytest.mark.parametrize("prompt", ["text", "image first", "image later", "two turns", "group of three"])
def test_logits_equal_transformers(shape: str, prompt: str) -> None:
    config = config_dict(TEXT_SHAPES[shape])
    network = random_network(config)
    peer = transformers_model(config, network)
    row, pictures = {
        "text": (ids(40), []),
        "image first": ([IMAGE, *ids(20)], [picture(6)]),
        "image later": ([*ids(7), IMAGE, *ids(9, 1)], [picture(1)]),
        "two turns": ([*ids(3), IMAGE, *ids(9, 1), IMAGE, *ids(5, 2)], [picture(2), picture(8)]),
        "group of three": ([*ids(3), IMAGE, IMAGE, IMAGE, *ids(9, 1)], [picture(1), picture(7), picture(4)]),
    }[prompt]
    ours = network(torch.tensor([row]), [p for p, _ in pictures], [i for _, i in pictures])
    assert_close(ours, peer_logits(peer, [row], [pictures], IMAGE))


@pytest.mark.parametrize("shape", VISION_SHAPES)
@pytest.mark.parametrize("id_", TILES)
@pytest.mark.parametrize("equal", [True, False], ids=["unused tiles equal", "unused tiles differ"])
def test_vision_tokens_equal_transformers(shape: str, id_: int, equal: bool) -> None:
    config = config_dict(vision=VISION_SHAPES[shape])
    network = random_network(config, equal_unused_tiles=equal)
    assert network.model.vision_model.unused_tiles_are_equal() == equal
    peer = transformers_model(config, network)
    pixels, _ = picture(id_, config["vision_config"]["image_size"])
    padded = torch.zeros(1, 1, 4, *pixels.shape[1:])
    padded[0, 0, : len(pixels)] = pixels
    mask = (torch.arange(4) < len(pixels)).long()[None, None]
    with torch.inference_mode():
        theirs = peer.model.vision_model(padded, torch.tensor([[id_]]), mask).last_hidden_state[0, 0]
        ours = network.model.vision_model(pixels[None], torch.tensor([id_]), all_tiles=True)[0]
        real = network.model.vision_model(pixels[None], torch.tensor([id_]))[0]
    assert_close(ours, theirs)
    assert torch.equal(real, ours[: len(pixels)])


@pytest.mark.slow
@pytest.mark.parametrize("size", [448, 560])
def test_vision_tokens_equal_transformers_at_full_tile_sizes(size: int) -> None:
    config = config_dict(vision={"image_size": size, "num_hidden_layers": 2, "num_global_layers": 1,
                                 "intermediate_layers_indices": [1]})  # fmt: skip
    network = random_network(config)
    peer = transformers_model(config, network)
    peer.set_attn_implementation("sdpa")
    row, pictures = [*ids(3), IMAGE, *ids(9, 1)], [picture(2, size)]
    ours = network(torch.tensor([row]), [pictures[0][0]], [2])
    assert_close(ours, peer_logits(peer, [row], [pictures], IMAGE))


def test_a_batch_of_different_conversations_equals_transformers() -> None:
    config = config_dict()
    network = random_network(config)
    peer = transformers_model(config, network)
    rows = [
        [*ids(3), IMAGE, *ids(16, 1)],
        [*ids(5, 2), IMAGE, *ids(4, 3), IMAGE, IMAGE, *ids(8, 4)],
        ids(20, 5),
    ]
    images = [[picture(1)], [picture(6), picture(2), picture(3)], []]
    flat = [p for row in images for p in row]
    ours = network(torch.tensor(rows), [p for p, _ in flat], [i for _, i in flat])
    theirs = peer_logits(peer, rows[:2], images[:2], IMAGE)
    assert_close(ours[:2], theirs)
    # In such a batch transformers runs the cross-attention layers for a text-only row too; alone it skips them.
    assert_close(ours[2:], peer_logits(peer, rows[2:], [[]], IMAGE))


def test_text_only_checkpoints_equal_transformers() -> None:
    config = text_only_config()
    network = random_network(config)
    peer = transformers_model(config, network)
    row = ids(50)
    assert_close(network(torch.tensor([row])), peer_logits(peer, [row], [[]], IMAGE))


def test_bfloat16_is_as_close_to_float32_as_transformers_is() -> None:
    config = config_dict()
    exact = random_network(config)
    row, pictures = [*ids(3), IMAGE, *ids(30, 1)], [picture(6)]
    reference = exact(torch.tensor([row]), [pictures[0][0]], [6])
    network = random_network(config).to(torch.bfloat16)
    ours = network(torch.tensor([row]), [pictures[0][0]], [6]).float()
    theirs = peer_logits(transformers_model(config, exact, torch.bfloat16), [row], [pictures], IMAGE).float()
    noise = (theirs - reference).norm() / reference.norm()
    assert (ours - reference).norm() / reference.norm() < 1.25 * noise
    assert noise > 1e-3


@pytest.mark.parametrize("images", [0, 1, 2], ids=["text", "one image", "two images"])
def test_greedy_decoding_equals_transformers_generate(images: int) -> None:
    config = config_dict()
    network = random_network(config, seed=3)
    peer = transformers_model(config, network)
    row = [*ids(4), *([IMAGE, *ids(5, 1)] * images), *ids(6, 2)]
    pictures = [picture(2), picture(5)][:images]
    expected = peer_greedy(peer, row, pictures, IMAGE, 32)
    cache = KVCache(network.config.text_config)
    encoded = [network.model.encode_image(*p) for p in pictures]
    cross = CrossKVCache.from_images([encoded])
    spans = [image_spans(row, IMAGE)]
    logits = forward(network, torch.tensor([row]), cache, cross, spans)
    got = []
    for _ in range(32):
        got.append(int(logits[0].argmax()))
        logits = forward(network, torch.tensor([got[-1:]]), cache, cross, spans)
    assert got == expected
    assert len(set(got)) > 4, "a model that repeats itself would prove little"
