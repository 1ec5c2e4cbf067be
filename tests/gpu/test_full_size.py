"""The full 11B shape with random bfloat16 weights, against transformers with the very same weights, on one GPU.

Run with ``pytest -m gpu -s tests/gpu``: it prints the noise, the memory and the speed that the README quotes.
"""

import time
from typing import Any

import pytest
import torch

from mllama_cli.core.config import MllamaConfig
from mllama_cli.engine.forward import forward
from mllama_cli.model.cache import CrossKVCache, KVCache
from mllama_cli.model.mllama import MllamaForConditionalGeneration
from mllama_cli.model.visibility import image_spans
from tests.peers import peer_logits

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.timeout(900),
]
GIB = 2**30
IMAGE = 128256
TILES = {1: 1, 2: 2, 6: 4}

CONFIG: dict[str, Any] = {
    "model_type": "mllama",
    "image_token_index": IMAGE,
    "text_config": {"model_type": "mllama_text_model"},
    "vision_config": {"model_type": "mllama_vision_model"},
}


def randomize(network: torch.nn.Module) -> None:
    for name, parameter in network.named_parameters():
        if parameter.dim() == 1:
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.normal_(centre, 0.8 if "gate" in name else 0.2)
        elif "embed" in name:
            parameter.normal_(0, 0.8)
        else:
            parameter.normal_(0, parameter[0].numel() ** -0.5)


@pytest.fixture(scope="module")
def network() -> MllamaForConditionalGeneration:
    need = 78 * 10**9
    if torch.cuda.mem_get_info()[0] < need:
        pytest.skip(f"needs {need / GIB:.0f} GiB of free GPU memory")
    torch.manual_seed(0)
    config = MllamaConfig.from_dict(CONFIG)
    with torch.device("meta"):
        built = MllamaForConditionalGeneration(config).to(torch.bfloat16)
    built = built.to_empty(device="cuda").eval().requires_grad_(False)
    randomize(built)
    vision, shape = built.model.vision_model, config.vision_config
    assert shape is not None
    for table in (  # as released checkpoints have it
        vision.pre_tile_positional_embedding.embedding.weight,
        vision.post_tile_positional_embedding.embedding.weight,
        vision.gated_positional_embedding.tile_embedding.weight,
    ):
        for id_ in range(len(shape.supported_aspect_ratios) + 1):
            table[id_].unflatten(0, (shape.max_num_tiles, -1))[shape.tiles(id_) if id_ else 0 :] = 0
    return built


def transformers_peer(network: MllamaForConditionalGeneration) -> Any:
    """transformers' model over the same tensors, not copies; intermediate layers shifted (difference A)."""
    from transformers import MllamaConfig as PeerConfig
    from transformers import MllamaForConditionalGeneration as PeerModel

    peer_config: Any = PeerConfig()
    text = peer_config.text_config
    text.vocab_size, text.rope_parameters = 128256, {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    peer_config.vision_config.image_size = 560
    peer_config.vision_config.intermediate_layers_indices = [2, 6, 14, 22, 29]
    peer_config._attn_implementation = "sdpa"
    with torch.device("meta"):
        peer: Any = PeerModel(peer_config)
    peer.load_state_dict(network.state_dict(), strict=True, assign=True)
    for module in peer.modules():  # buffers that are computed, not stored
        if "RotaryEmbedding" in type(module).__name__:
            with torch.device("cuda"):
                module.__init__(text)
    assert not any(t.is_meta for t in (*peer.parameters(), *peer.buffers()))
    return peer.eval().requires_grad_(False)


def pictures(*ratio_ids: int) -> list[tuple[torch.Tensor, int]]:
    generator = torch.Generator().manual_seed(sum(ratio_ids))
    return [(torch.randn(TILES[i], 3, 560, 560, generator=generator), i) for i in ratio_ids]


def ids(length: int, seed: int = 0) -> list[int]:
    return torch.randint(0, 128000, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def test_logits_are_within_bfloat16_noise_of_transformers(network: MllamaForConditionalGeneration) -> None:
    pytest.importorskip("transformers")
    prompts = {
        "text": (ids(64), []),
        "one tile": ([IMAGE, *ids(24)], pictures(1)),
        "four tiles, text first": ([*ids(7), IMAGE, *ids(24, 1)], pictures(6)),
        "two images in two turns": ([*ids(5), IMAGE, *ids(9, 1), IMAGE, *ids(12, 2)], pictures(2, 6)),
    }
    peer = transformers_peer(network)
    ours, theirs, exact = {}, {}, {}
    device = torch.device("cuda")
    for name, (row, images) in prompts.items():
        ours[name] = network(
            torch.tensor([row], device=device), [p.to(device) for p, _ in images], [i for _, i in images]
        ).float()
        theirs[name] = on_gpu(peer, row, images).float()
    peer = peer.float()  # copies: the network's own tensors stay bfloat16
    for name, (row, images) in prompts.items():
        exact[name] = on_gpu(peer, row, images)
    print()
    for name in prompts:
        scale = exact[name].norm()
        mine, peers = (ours[name] - exact[name]).norm() / scale, (theirs[name] - exact[name]).norm() / scale
        apart = (ours[name] - theirs[name]).norm() / scale
        agree = (ours[name].argmax(-1) == exact[name].argmax(-1)).float().mean()
        print(f"{name:26} ours {mine:.4f}  transformers {peers:.4f}  apart {apart:.4f}  same argmax {agree:.2f}")
        assert mine < 1.25 * peers + 1e-3
        assert apart < mine + peers


def on_gpu(peer: Any, row: list[int], images: list[tuple[torch.Tensor, int]]) -> torch.Tensor:
    with torch.device("cuda"):
        return peer_logits(peer, [row], [[(p.cuda(), i) for p, i in images]], IMAGE)


@pytest.mark.parametrize("ratio_ids", [(), (1,), (6,)], ids=["text", "one tile", "four tiles"])
def test_memory_and_speed(network: MllamaForConditionalGeneration, ratio_ids: tuple[int, ...]) -> None:
    torch.cuda.empty_cache()
    weights = sum(p.nbytes for p in network.parameters())
    row = [*[IMAGE] * len(ratio_ids), *ids(24)]
    spans = [image_spans(row, IMAGE)]
    device = torch.device("cuda")
    images = [(p.to(device), i) for p, i in pictures(*ratio_ids)]
    for _ in range(2):  # the first round warms up
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        with torch.inference_mode():
            cross = CrossKVCache.from_images([[network.model.encode_image(*image) for image in images]])
        torch.cuda.synchronize()
        encoded = time.perf_counter()
        cache = KVCache(network.config.text_config, dtype=torch.bfloat16, device=device)
        logits = forward(network, torch.tensor([row], device=device), cache, cross, spans)
        token = int(logits.argmax())
        first = time.perf_counter()
        for _ in range(64):
            logits = forward(network, torch.tensor([[token]], device=device), cache, cross, spans)
            token = int(logits.argmax())
        end = time.perf_counter()
    peak = torch.cuda.max_memory_allocated()
    print(
        f"\nweights {weights / GIB:.2f} GiB, peak {peak / GIB:.2f} GiB; image {1000 * (encoded - start):.1f} ms, "
        f"prefill {1000 * (first - encoded):.1f} ms, decode {64 / (end - first):.1f} tokens/s"
    )
    assert peak < torch.cuda.memory_allocated() + 2 * GIB, "activations and caches are small beside the weights"
    assert torch.isfinite(logits).all()
