"""Figures of the small model: all there, and bytes counted as the weights that a token reads."""

import torch

from mllama_cli.benchmark.decode import Subject, benchmark, token_bytes
from mllama_cli.benchmark.random_network import random_matrix, random_network
from mllama_cli.engine.engine import Engine
from mllama_cli.kernels.packed import dequantize
from mllama_cli.quantization.linear import QuantizedLinear
from mllama_cli.quantization.schemes import Scheme


def test_every_figure_is_measured_and_positive(engine: Engine) -> None:
    subject = Subject(engine.network, engine.fast, engine.config, engine.dtype, engine.device, engine.prefill_rows)
    figures = {figure.name: figure for figure in benchmark(subject, tokens=3)}
    assert {
        "memory, read", "vision, 1 tile", "vision, 4 tiles", "first token, image and 24 tokens",
        "first token, 24 tokens", "prefill, 1024 tokens", "decode, text", "decode, after an image",
    } == set(figures)  # fmt: skip
    assert all(figure.value > 0 for figure in figures.values())
    text, image = figures["decode, text"], figures["decode, after an image"]
    assert text.nbytes is not None
    assert image.nbytes is not None
    assert 0 < text.nbytes < image.nbytes


def test_a_token_reads_no_embedding_and_no_keys_of_the_image(engine: Engine) -> None:
    model = engine.network.language_model
    crossing = set(engine.config.text_config.cross_attention_layers)
    matrices = {
        name: parameter.nbytes
        for name, parameter in [*model.named_parameters(), *engine.network.lm_head.named_parameters()]
        if parameter.dim() == 2 and "embed" not in name
    }
    unread = sum(size for name, size in matrices.items() if "cross_attn.k_proj" in name or "cross_attn.v_proj" in name)
    assert token_bytes(engine.network, sees=True) == sum(matrices.values()) - unread
    of_cross = sum(size for name, size in matrices.items() if any(f"layers.{i}." in name for i in crossing))
    assert token_bytes(engine.network, sees=False) == sum(matrices.values()) - of_cross


def test_a_random_network_computes_finite_numbers(engine: Engine) -> None:
    for quantize in (None, "int4"):
        made = random_network(engine.config, dtype=torch.float32, device=torch.device("cpu"), quantize=quantize)
        logits = made(torch.tensor([[1, 2, 3]]))
        assert torch.isfinite(logits).all()
        assert 0.01 < float(logits.std()) < 100


def test_a_random_packed_layer_is_its_matrix() -> None:
    layer = QuantizedLinear(64, 5, Scheme(4, 32))
    layer.fill(random_matrix(layer, torch.float32, torch.device("cpu")))
    x = torch.randn(3, 64)
    assert torch.allclose(layer(x), x @ dequantize(layer.packed).T, atol=0.02), "activations may be rounded to 8 bits"
