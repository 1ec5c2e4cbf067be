"""Figures of the small model: all there, and bytes counted as the weights that a token reads."""

import pytest
import torch

from mllama_cli.benchmark.captions import caption_rate
from mllama_cli.benchmark.decode import benchmark, token_bytes
from mllama_cli.benchmark.random_network import random_matrix, random_model, random_network
from mllama_cli.engine.engine import Engine
from mllama_cli.kernels.packed import dequantize
from mllama_cli.quantization.linear import QuantizedLinear
from mllama_cli.quantization.schemes import Scheme


def test_every_figure_is_measured_and_positive(engine: Engine) -> None:
    figures = {figure.name: figure for figure in benchmark(engine.model, tokens=3)}
    assert {
        "memory, read", "vision, 1 tile", "vision, 4 tiles", "first token, image and 24 tokens",
        "first token, 24 tokens", "prefill, 1024 tokens", "decode, text", "decode, after an image",
        "memory, peak",
    } == set(figures)  # fmt: skip
    assert all(figure.value > 0 for figure in figures.values())
    text, image = figures["decode, text"], figures["decode, after an image"]
    assert text.nbytes is not None
    assert image.nbytes is not None
    assert 0 < text.nbytes < image.nbytes
    assert 0.05 < figures["memory, peak"].value < 64


def test_a_token_reads_no_embedding_and_no_keys_of_the_image(engine: Engine) -> None:
    model = engine.network.language_model
    crossing = set(engine.config.text_config.cross_attention_layers)
    matrices = {
        name: parameter.nbytes
        for name, parameter in [*model.named_parameters(), *engine.network.lm_head.named_parameters()]
        if parameter.dim() == 2 and "embed" not in name
    }
    unread = sum(size for name, size in matrices.items() if "cross_attn.k_proj" in name or "cross_attn.v_proj" in name)
    assert token_bytes(engine.network, with_images=True) == sum(matrices.values()) - unread
    of_cross = sum(size for name, size in matrices.items() if any(f"layers.{i}." in name for i in crossing))
    assert token_bytes(engine.network, with_images=False) == sum(matrices.values()) - of_cross


def test_a_random_network_computes_finite_numbers(engine: Engine) -> None:
    for quantize in (None, "int4"):
        made = random_network(engine.config, dtype=torch.float32, device=torch.device("cpu"), quantize=quantize)
        logits = made(torch.tensor([[1, 2, 3]]))
        assert torch.isfinite(logits).all()
        assert 0.01 < float(logits.std()) < 100


def test_a_random_network_in_16_bits_computes_on_a_cpu_as_a_loaded_one(engine: Engine) -> None:
    model, _ = random_model(engine.config, dtype=torch.bfloat16, device=torch.device("cpu"))
    layer = model.network.language_model.layers[0]
    assert layer.mlp.up_proj.weight.dtype == torch.bfloat16
    assert layer.input_layernorm.weight.dtype == model.dtype == torch.float32


@pytest.mark.parametrize("with_words", [True, False], ids=["loaded", "random"])
def test_captions_are_counted_with_and_without_a_tokenizer(engine: Engine, with_words: bool) -> None:
    model, device = engine.model, torch.device("cpu")
    if not with_words:
        model, plan = random_model(engine.config, dtype=torch.float32, device=device)
        assert not str(plan)
    eos = model.eos
    rate, slots, tiles = caption_rate(model, tokens=3)
    assert rate > 0
    assert (slots, tiles) == (4, 4)
    assert model.eos is eos, "the model is left as it was"


def test_a_random_packed_layer_is_its_matrix() -> None:
    layer = QuantizedLinear(64, 5, Scheme(4, 32))
    layer.fill(random_matrix(layer, torch.float32, torch.device("cpu")))
    x = torch.randn(3, 64)
    assert torch.allclose(layer(x), x @ dequantize(layer.packed).T, atol=0.02), "activations may be rounded to 8 bits"
