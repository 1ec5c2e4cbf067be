"""Speed and memory of the packed formats on one GPU: integers, and the nf4 and FP8 of other tools' files.

    python -m tests.benchmarks.packed_codes [--shape 11b] [--formats int4,nf4,int8,fp8] [--rank 16] [--tiles]

Prints, for each format with random weights, the tokens per second of whole decode steps with and without an image, the
share of the memory bandwidth, and the memory that the weights take. ``--rank`` puts a LoRA adapter over all packed
layers of the language model. ``--tiles`` also times the products of one row at
the model's shapes with several tiles, to choose those of ``choose_gemv_tile``.
"""

import argparse
import gc

import torch
from triton.testing import do_bench_cudagraph

from mllama_cli.benchmark.decode import benchmark
from mllama_cli.benchmark.random_network import random_matrix, random_model
from mllama_cli.core.config import MllamaConfig
from mllama_cli.engine.weights.shapes import FILE_SCHEMES, SHAPES
from mllama_cli.kernels.cuda.gemv_api import GemvTile, choose_gemv_tile, gemv
from mllama_cli.kernels.cuda.layout import interleave_factor
from mllama_cli.kernels.packed import PackedWeight
from mllama_cli.quantization.linear import AdaptedLinear, QuantizedLinear, replace_linears
from mllama_cli.quantization.schemes import scheme_named

DEVICE = torch.device("cuda")
TILES = [
    GemvTile(rows, columns, warps, programs)
    for rows in (2, 4, 8)
    for columns in (64, 128, 256)
    for warps in (2, 4, 8)
    for programs in (0, 8)
]


def matrices(config: MllamaConfig, form: str) -> dict[str, list[PackedWeight]]:
    """Return what one kernel reads at a time, by name."""
    text, scheme = config.text_config, FILE_SCHEMES.get(form) or scheme_named(form)
    size, inner, kv = text.hidden_size, text.intermediate_size, text.num_key_value_heads * text.head_dim

    def made(inputs: int, *outputs: int) -> list[PackedWeight]:
        layers = [QuantizedLinear(inputs, n, scheme.fitted(inputs)) for n in outputs]
        return [random_matrix(layer, torch.bfloat16, DEVICE) for layer in layers]

    return {
        "qkv": made(size, size, kv, kv),
        "o": made(size, size),
        "gate and up": made(size, inner, inner),
        "down": made(inner, size),
    }


def time_tiles(config: MllamaConfig, form: str) -> None:
    for name, weights in matrices(config, form).items():
        swiglu, first = name == "gate and up", weights[0]
        shapes = [weight.shape for weight in weights]
        inputs, outputs = first.shape[1], shapes[0][0] if swiglu else sum(shape[0] for shape in shapes)
        nbytes = sum(weight.packed.nbytes + weight.scale.nbytes for weight in weights)
        x, out = (torch.randn(1, n, dtype=torch.bfloat16, device=DEVICE) for n in (inputs, outputs))
        found: list[tuple[float, GemvTile]] = []
        chosen = choose_gemv_tile(first, shapes, swiglu)
        for tile in {chosen, *TILES}:
            quads = inputs * first.bits // 128
            if tile.programs and quads > tile.columns:  # rows must fit into a program's registers
                continue

            def run(tile: GemvTile = tile) -> None:
                gemv(x, weights, out, swiglu=swiglu, in_interleave=interleave_factor(first), tile=tile)

            found.append((do_bench_cudagraph(run), tile))
        found.sort(key=lambda item: item[0])
        ours = next(milliseconds for milliseconds, tile in found if tile == chosen)
        print(f"  {name}: chosen {1000 * ours:.1f} us ({nbytes / ours / 1e9:.2f} TB/s) {chosen}")
        for milliseconds, tile in found[:3]:
            print(f"    {1000 * milliseconds:.1f} us ({nbytes / milliseconds / 1e9:.2f} TB/s) {tile}")


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
