"""Speed and memory of the packed formats on one GPU: integers, and the nf4 and FP8 of other tools' files.

    python -m tests.benchmarks.packed_codes [--shape 11b] [--formats int4,nf4,int8,fp8] [--rank 16] [--tiles]

Prints, for each format with random weights, the tokens per second of whole decode steps with and without an image, the
share of the memory bandwidth, and the memory that the weights take. ``--rank`` puts a LoRA adapter over all packed
layers of the language model. ``--tiles`` also times the products of one row at the model's shapes with many tiles,
for kernels/cuda/gemv_tiles.py; each reads more weights in turn than the GPU's cache holds. It takes minutes.
"""

import argparse
import gc
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import torch
import triton
from triton.testing import do_bench_cudagraph

from mllama_cli.benchmark.decode import benchmark
from mllama_cli.benchmark.random_network import random_matrix, random_model
from mllama_cli.core.config import MllamaConfig
from mllama_cli.engine.weights.shapes import FILE_SCHEMES, SHAPES
from mllama_cli.kernels.cuda.gemv_api import gemv
from mllama_cli.kernels.cuda.gemv_tiles import GemvTile, choose_gemv_tile
from mllama_cli.kernels.cuda.launch import compile_only
from mllama_cli.kernels.cuda.layout import interleave_factor
from mllama_cli.kernels.packed import PackedWeight
from mllama_cli.quantization.linear import AdaptedLinear, QuantizedLinear, replace_linears
from mllama_cli.quantization.schemes import scheme_named

DEVICE = torch.device("cuda")
READ_BYTES = 300 * 10**6
"""Bytes of weights that a timing reads in turn: several times the cache."""


def matrices(config: MllamaConfig, form: str) -> dict[str, list[list[PackedWeight]]]:
    """Return copies of what one kernel reads at a time, by name."""
    text, scheme = config.text_config, FILE_SCHEMES.get(form) or scheme_named(form)
    size, inner, kv = text.hidden_size, text.intermediate_size, text.num_key_value_heads * text.head_dim

    def made(inputs: int, *outputs: int) -> list[list[PackedWeight]]:
        layers = [QuantizedLinear(inputs, n, scheme.fitted(inputs)) for n in outputs]
        first = [random_matrix(layer, torch.bfloat16, DEVICE) for layer in layers]
        nbytes = sum(weight.packed.nbytes + weight.scale.nbytes for weight in first)
        count = -(-READ_BYTES // nbytes)
        return [
            first,
            *([replace(w, packed=w.packed.clone(), scale=w.scale.clone()) for w in first] for _ in range(count - 1)),
        ]

    return {
        "qkv": made(size, size, kv, kv),
        "o": made(size, size),
        "gate and up": made(size, inner, inner),
        "down": made(inner, size),
    }


def candidates(quads: int, *, gated: bool) -> Iterator[GemvTile]:
    """Yield tiles of persistent programs with which a thread holds 4 to 16 quads of weights at a time."""
    for chunks, warps, held in product((1, 2, 4), (4, 8, 16), (4, 8, 16)):
        rows = 32 * warps * held // quads // (2 if gated else 1)
        for registers in (96, 128, 168):
            programs = 65536 // (32 * warps * registers)
            if rows and programs and quads // chunks >= 32:
                yield GemvTile(rows, quads // chunks, warps, programs, registers, chunks)


class Timing:
    """One row times copies of matrices, in turn, as the decode step multiplies them."""

    def __init__(self, name: str, copies: list[list[PackedWeight]]) -> None:
        self.copies, self.swiglu = copies, name == "gate and up"
        first, shapes = copies[0][0], [weight.shape for weight in copies[0]]
        inputs, outputs = first.shape[1], shapes[0][0] if self.swiglu else sum(shape[0] for shape in shapes)
        self.nbytes = sum(weight.packed.nbytes + weight.scale.nbytes for weight in copies[0])
        self.x, self.out = (torch.randn(1, n, dtype=torch.bfloat16, device=DEVICE) for n in (inputs, outputs))
        self.norm = torch.ones(inputs, dtype=torch.bfloat16, device=DEVICE) if name in ("qkv", "gate and up") else None
        self.chosen = choose_gemv_tile(first, shapes, self.swiglu)
        self.quads = triton.next_power_of_2(inputs * first.bits // 128)

    def multiply(self, weights: list[PackedWeight], tile: GemvTile) -> None:
        form = interleave_factor(weights[0])
        residual = None if self.norm is not None else self.out
        gemv(
            self.x, weights, self.out, norm=self.norm, eps=1e-5, residual=residual, swiglu=self.swiglu,
            in_interleave=form, out_interleave=form if self.swiglu else 1, tile=tile,
        )  # fmt: skip

    def milliseconds(self, tile: GemvTile) -> float:
        """Return how long one product takes."""

        def run() -> None:
            for weights in self.copies:
                self.multiply(weights, tile)

        return float(do_bench_cudagraph(run)) / len(self.copies)


def time_tiles(config: MllamaConfig, form: str) -> None:
    timings = {name: Timing(name, copies) for name, copies in matrices(config, form).items()}
    tiles = {
        name: [timing.chosen, *(set(candidates(timing.quads, gated=timing.swiglu)) - {timing.chosen})]
        for name, timing in timings.items()
    }
    with compile_only():
        for name, timing in timings.items():
            for tile in tiles[name]:
                timing.multiply(timing.copies[0], tile)
    for name, timing in timings.items():
        found = sorted(((timing.milliseconds(tile), tile) for tile in tiles[name]), key=lambda item: item[0])
        print(f"  {form}, {name}:")
        for milliseconds, tile in found:
            mark = " (chosen)" if tile == timing.chosen else ""
            print(f"    {1000 * milliseconds:.1f} us ({timing.nbytes / milliseconds / 1e9:.2f} TB/s) {tile}{mark}")


def adapt(network: torch.nn.Module, rank: int) -> None:
    """Put an adapter of random numbers over the packed layers of the language model."""
    packed = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, QuantizedLinear) and "language_model" in name
    }
    replace_linears(network, {name: module.scheme for name, module in packed.items()}, dict.fromkeys(packed, rank))
    for name, old in packed.items():
        new = network.get_submodule(name)
        assert isinstance(new, AdaptedLinear)
        new.fill(old.packed)
        shapes = (rank, old.in_features), (old.out_features, rank)
        new.fill_change(*(torch.randn(shape, dtype=torch.bfloat16, device=DEVICE) / 100 for shape in shapes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="11b")
    parser.add_argument("--formats", default="int4,nf4,int8,fp8")
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--tiles", action="store_true")
    options = parser.parse_args()
    config = SHAPES[options.shape]
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {options.shape} shape, bfloat16 activations")
    for form in options.formats.split(","):
        before = torch.cuda.memory_allocated()
        with torch.inference_mode():
            model, _ = random_model(config, dtype=torch.bfloat16, device=DEVICE, quantize=form)
            if options.rank:
                adapt(model.network, options.rank)
            print(f"{form}: weights {(torch.cuda.memory_allocated() - before) / 1e9:.2f} GB", flush=True)
            for figure in benchmark(model):
                if figure.name.startswith(("decode", "prefill")):
                    share = "" if figure.share is None else f", {100 * figure.share:.0f}% of the bandwidth"
                    print(f"  {figure.name}: {figure.value:.1f} {figure.unit}{share}", flush=True)
            if model.decoder.fallback_reason:
                print(f"  without our kernels: {model.decoder.fallback_reason}")
            if options.tiles:
                time_tiles(config, form)
        del model
        gc.collect()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
