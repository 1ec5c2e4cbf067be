"""Sums over GPUs, one rank at a time: the test writes what other ranks would send, and reads what they receive."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from tests.triton_here import DEVICE  # isort: skip  (first: it prepares Triton)
from mllama_cli.kernels.cuda.rank_sum import BLOCK, rank_sum

CAPACITY = 1024


def words(x: Tensor, counts: Tensor) -> Tensor:
    """Return the numbers of a tensor as they are in a mailbox, with the count of the program that sends them."""
    numbers = x.view(-1).view(torch.int32).long() & 0xFFFFFFFF
    return (counts.long().repeat_interleave(BLOCK)[: len(numbers)] << 32) | numbers


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("ranks", [2, 4])
def test_all_ranks_send_their_numbers_and_have_the_same_sum(dtype: torch.dtype, ranks: int) -> None:
    torch.manual_seed(0)
    boxes = torch.zeros(ranks, 2, ranks, CAPACITY, dtype=torch.int64, device=DEVICE)
    addresses = tuple(box.data_ptr() for box in boxes)
    counts = torch.zeros(ranks, CAPACITY // BLOCK, dtype=torch.int32, device=DEVICE)
    stop = torch.zeros(1, dtype=torch.int32, device=DEVICE)
    for size in (600, 90, 600):  # the second takes fewer programs than the others
        parts = torch.randn(ranks, size, device=DEVICE).to(dtype)
        results = parts.clone()
        for rank in range(ranks):
            counting = counts[rank] + 1
            sent = torch.stack([words(part, counting) for part in parts])
            sending = torch.arange(sent.shape[1], device=DEVICE)
            half = counting.long().repeat_interleave(BLOCK)[: len(sending)] & 1
            for other in range(ranks):
                boxes[rank, half, other, sending] = sent[other]
                boxes[other, half, rank, sending] = 0
            rank_sum(results[rank], addresses, counts[rank], stop, rank, CAPACITY)
            for other in range(ranks):
                if other != rank:
                    assert torch.equal(boxes[other, half, rank, sending], sent[rank])
        assert all(torch.equal(result, results[0]) for result in results)
        expected = parts.double().sum(0)
        assert torch.allclose(results[0].double(), expected, rtol=1e-2, atol=2e-2)
    assert counts[:, 0].tolist() == [3] * ranks
    assert counts[:, -1].tolist() == [0] * ranks


def test_words_beyond_the_tensor_are_left_alone() -> None:
    room = torch.ones(BLOCK + 64, device=DEVICE)
    boxes = torch.zeros(1, 2, 1, CAPACITY, dtype=torch.int64, device=DEVICE)
    counts = torch.zeros(4, dtype=torch.int32, device=DEVICE)
    addresses = (boxes.data_ptr(),)
    rank_sum(room[:40], addresses, counts, torch.zeros(1, dtype=torch.int32, device=DEVICE), 0, CAPACITY)
    assert torch.equal(room, torch.ones_like(room))
    assert not boxes.any()


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from mllama_cli.kernels.cuda.rank_sum import rank_sum_kernel as kernel
constants = {"RANK": 1, "RANKS": 4, "WORDS": 1000, "CAPACITY": 4096, "KIND": "bfloat16", "BLOCK": 256}
for capability in (80, 90):
    constants |= {"ASSEMBLY": True, "PDL": capability >= 90}
    types = {"x": "*i32", "mailboxes": ("i64",) * 4, "counts": "*i32", "stop": "*i32"}
    signature = {name: "constexpr" if name in constants else types[name] for name in kernel.arg_names}
    source = triton.compiler.ASTSource(kernel, signature, constants)
    made = triton.compile(source, GPUTarget("cuda", capability, 32), {"num_warps": 8})
    assert made.asm["cubin"]
    assert made.asm["ptx"].count("ld.relaxed.sys.global.b64") == 3
"""


@pytest.mark.slow
@pytest.mark.skipif(DEVICE.type == "cuda", reason="compiled and run by the other tests there")
def test_waiting_for_other_ranks_compiles_for_a_gpu() -> None:
    done = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
