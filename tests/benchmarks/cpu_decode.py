"""Tokens per second on a CPU at the shape of Llama 3.1 8B, ours next to llama.cpp's, and the memory's speed.

    python tests/benchmarks/cpu_decode.py [--folder DIR] [--threads 1,2] [--skip-llama]

Weights are random, in mapped files, as a checkpoint's do: ours 4 bits in groups of 128 with an output layer of
8 bits, llama.cpp's Q4_0 (needs llama-cpp-python and gguf). About 9 GB of disk, and as much memory for both files to
stay in the page cache. Each number is the best of several, as other programs only ever make one slower.
"""

import argparse
import ctypes
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mllama_cli.core.config import MllamaTextConfig
from mllama_cli.engine.forward import forward
from mllama_cli.kernels import ops
from mllama_cli.kernels.packed import PackedWeight
from mllama_cli.model.cache import KVCache
from mllama_cli.model.layers import Linear, Projection, set_exact
from mllama_cli.model.text import MllamaForCausalLM

LAYERS, PROMPT = 32, 128
SILENT = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
CONFIG = MllamaTextConfig(num_hidden_layers=LAYERS, cross_attention_layers=(), max_position_embeddings=4096)


@dataclass(frozen=True)
class Seconds:
    """Of the fastest run. On one thread of a machine that others use, the processor's time says more than the clock."""

    clock: float
    processor: float

    def rate(self, amount: float, threads: int) -> str:
        alone = f" ({amount / self.processor:5.2f} by processor time)" if threads == 1 else ""
        return f"{amount / self.clock:5.2f}{alone}"


def best(runs: dict[str, Callable[[], object]], times: int) -> dict[str, Seconds]:
    """Each run's fastest of ``times``, in turns: what disturbs the machine disturbs all."""
    clock: dict[str, list[float]] = {name: [] for name in runs}
    processor: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(times):
        for name, run in runs.items():
            start, begin = time.perf_counter(), time.process_time()
            run()
            clock[name].append(time.perf_counter() - start)
            processor[name].append(time.process_time() - begin)
    return {name: Seconds(min(clock[name]), min(processor[name])) for name in runs}


def memory_read() -> Callable[[], object]:
    """Reads a GB of memory."""
    return torch.ones(250_000_000).sum


class Packed(Projection):
    """A linear layer over a packed matrix."""

    def __init__(self, weight: PackedWeight) -> None:
        super().__init__()
        self.matrix = weight

    def forward(self, x: Tensor) -> Tensor:
        return ops.quantized_linear(x, self.matrix, exact=self.exact)


def linears(network: nn.Module) -> Iterator[tuple[nn.Module, str, tuple[int, int], int]]:
    """(owner, attribute, shape, bits) of every matrix."""
    for name, module in list(network.named_modules()):
        if isinstance(module, Linear):
            owner, attribute = name.rpartition(".")[::2]
            bits = 8 if attribute == "lm_head" else 4
            yield network.get_submodule(owner), attribute, (module.out_features, module.in_features), bits


def ours(folder: Path) -> tuple[MllamaForCausalLM, int]:
    """The network over a mapped file of random weights, and the bytes of weights that a token reads."""
    with torch.device("meta"):
        network = MllamaForCausalLM(CONFIG)
    plan = [(owner, attribute, shape, bits, n_words(shape, bits)) for owner, attribute, shape, bits in linears(network)]
    total = sum(words for *_, words in plan)
    file = folder / "ours.bin"
    if not file.exists() or file.stat().st_size != total * 4:
        random_file(file, total * 4)
    words = torch.from_file(str(file), shared=False, size=total, dtype=torch.int32)
    start = read = 0
    for owner, attribute, (n, k), bits, count in plan:
        groups = 1 if bits == 8 else k // 128
        scale = torch.full((n, groups), 0.2 * k**-0.5 * (0.06 if bits == 8 else 1.0), dtype=torch.bfloat16)
        setattr(owner, attribute, Packed(PackedWeight(words[start : start + count].view(n, -1), scale, (n, k), bits)))
        start += count
        read += count * 4 + scale.nbytes
    network.to_empty(device="cpu")
    for parameter in network.parameters():
        parameter.requires_grad_(False)
        if parameter.dim() == 1:
            parameter.fill_(1.0)
    network.model.embed_tokens.weight = nn.Parameter(
        torch.randn(1000, CONFIG.hidden_size).bfloat16(), requires_grad=False
    )
    return network.eval(), read


def n_words(shape: tuple[int, int], bits: int) -> int:
    return shape[0] * shape[1] * bits // 32


def random_file(file: Path, size: int) -> None:
    rng = np.random.default_rng(0)
    with file.open("wb") as out:
        for start in range(0, size, 2**26):
            out.write(rng.bytes(min(2**26, size - start)))


@dataclass(frozen=True)
class Peer:
    """One of those compared."""

    step: Callable[[], object]
    prefill: Callable[[], object]


def our_peer(network: MllamaForCausalLM, exact: bool = False) -> Peer:
    set_exact(network, exact)
    prompt, token = torch.randint(0, 1000, (1, PROMPT)), torch.tensor([[5]])
    cache = KVCache(CONFIG, dtype=torch.float32)

    def run(ids: Tensor, into: KVCache) -> None:
        forward(network, ids, into, None, [[]])

    return Peer(lambda: run(token, cache), lambda: run(prompt, KVCache(CONFIG, dtype=torch.float32)))


def write_gguf(file: Path) -> None:
    import gguf

    config = CONFIG
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(4096)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    writer.add_tokenizer_model("no_vocab")
    kv = config.num_key_value_heads * config.head_dim
    size, inner, vocabulary = config.hidden_size, config.intermediate_size, config.vocab_size
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocabulary, size)}
    for layer in range(LAYERS):
        block = {
            "attn_norm": (size,), "attn_q": (size, size), "attn_k": (kv, size), "attn_v": (kv, size),
            "attn_output": (size, size), "ffn_norm": (size,), "ffn_gate": (inner, size), "ffn_up": (inner, size),
            "ffn_down": (size, inner),
        }  # fmt: skip
        shapes.update({f"blk.{layer}.{name}.weight": shape for name, shape in block.items()})
    shapes |= {"output_norm.weight": (size,), "output.weight": (vocabulary, size)}
    q4 = gguf.GGMLQuantizationType.Q4_0
    for name, shape in shapes.items():
        if len(shape) == 1:
            writer.add_tensor_info(name, shape, np.dtype(np.float32), 4 * shape[0])
        else:
            stored = (shape[0], shape[1] // 32 * 18)
            writer.add_tensor_info(name, stored, np.dtype(np.uint8), stored[0] * stored[1], raw_dtype=q4)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for shape in shapes.values():
        if len(shape) == 1:
            writer.write_tensor_data(np.ones(shape, dtype=np.float32))
        else:
            blocks = np.frombuffer(rng.bytes(shape[0] * shape[1] // 32 * 18), dtype=np.uint8).reshape(-1, 18).copy()
            blocks[:, :2] = np.frombuffer(np.float16(0.2 * shape[1] ** -0.5).tobytes(), dtype=np.uint8)
            writer.write_tensor_data(blocks.reshape(shape[0], -1))
    writer.close()


def llama_peer(file: Path, threads: int) -> Peer:
    """llama.cpp through the functions of its library."""
    import llama_cpp

    llama_cpp.llama_log_set(SILENT, None)
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(str(file).encode(), llama_cpp.llama_model_default_params())
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch = 512, 512, 512
    settings.n_threads = settings.n_threads_batch = threads
    context = llama_cpp.llama_init_from_model(model, settings)
    memory = llama_cpp.llama_get_memory(context)

    def run(ids: list[int]) -> None:
        array = (llama_cpp.llama_token * len(ids))(*ids)
        if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(array, len(ids))):
            raise RuntimeError("llama_decode failed")

    def prefill() -> None:
        llama_cpp.llama_memory_clear(memory, True)
        run(list(range(1, PROMPT + 1)))

    return Peer(lambda: run([5]), prefill)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the files lie, and stay (default: a temporary folder)")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--tokens", type=int, default=12, help="decode steps of which the best counts")
    parser.add_argument("--prompts", type=int, default=2, help="the same of prefills")
    parser.add_argument("--skip-llama", action="store_true")
    given = parser.parse_args()
    counts = [int(count) for count in given.threads.split(",")]
    temporary = None if given.folder else tempfile.TemporaryDirectory()
    folder = given.folder or Path(temporary.name)  # type: ignore[union-attr]
    folder.mkdir(parents=True, exist_ok=True)

    network, read = ours(folder)
    exact_network, _ = ours(folder)  # over the same mapped file
    gguf = folder / "q4_0.gguf"
    if not given.skip_llama and not gguf.exists():
        write_gguf(gguf)
    print(f"weights read for a token: ours {read / 1e9:.2f} GB")
    if not given.skip_llama:
        print(f"llama.cpp's file: {gguf.stat().st_size / 1e9:.2f} GB (its embedding table, 0.30 GB, is not read whole)")
    for threads in counts:
        torch.set_num_threads(threads)
        peers = {"ours": our_peer(network), "ours, exact": our_peer(exact_network, exact=True)}
        if not given.skip_llama:
            peers["llama.cpp"] = llama_peer(gguf, threads)
        prompts = best({name: peer.prefill for name, peer in peers.items() if "exact" not in name}, given.prompts)
        steps = best({"memory": memory_read(), **{name: peer.step for name, peer in peers.items()}}, given.tokens)
        print(f"\n{threads} thread{'s' * (threads > 1)}: memory reads at {steps['memory'].rate(1, threads)} GB/s")
        for name in peers:
            prefill = f"; prefill of {PROMPT} {prompts[name].rate(PROMPT, threads)} tok/s" if name in prompts else ""
            print(f"  {name}: decode {steps[name].rate(1, threads)} tok/s{prefill}")
        share = read / 1e9 * steps["memory"].clock / steps["ours"].clock
        alone = read / 1e9 * steps["memory"].processor / steps["ours"].processor
        print(
            f"  ours reads weights at {share:.0%} of the memory's speed"
            + f", {alone:.0%} by processor time" * (threads == 1)
        )
        del peers


if __name__ == "__main__":
    main()
