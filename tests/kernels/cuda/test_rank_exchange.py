"""Exchanges of GPUs, one rank at a time: the test writes what others would send, and reads what they receive."""

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.triton_here import DEVICE  # isort: skip  (first: it prepares Triton)
from mllama_cli.kernels.cuda.rank_exchange import BLOCK, Mailboxes

CAPACITY = 1024


def words(x: Tensor, counts: Tensor) -> Tensor:
    """Return the numbers of a tensor as they are in a mailbox, with the count of the program that sends them."""
    numbers = x.view(-1).view(torch.int32).long() & 0xFFFFFFFF
    return (counts.long().repeat_interleave(BLOCK)[: len(numbers)] << 32) | numbers


class Ranks:
    """Several ranks in this process."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.boxes = torch.zeros(count, 2, count, CAPACITY, dtype=torch.int64, device=DEVICE)
        counts = torch.zeros(count, CAPACITY // BLOCK, dtype=torch.int32, device=DEVICE)
        stop = torch.zeros(1, dtype=torch.int32, device=DEVICE)
        addresses = torch.tensor([box.data_ptr() for box in self.boxes], device=DEVICE)
        self.mailboxes = [Mailboxes(addresses, counts[rank], stop, rank, CAPACITY) for rank in range(count)]

    def exchange(self, parts: Tensor, run: Callable[[Mailboxes, Tensor], Tensor | None]) -> list[Tensor]:
        """Return each rank's result of an exchange of these parts [ranks, ...], after checking what it sends."""
        results = []
        for rank, mailboxes in enumerate(self.mailboxes):
            counting = mailboxes.counts + 1
            sent = torch.stack([words(part, counting) for part in parts])
            sending = torch.arange(sent.shape[1], device=DEVICE)
            half = counting.long().repeat_interleave(BLOCK)[: len(sending)] & 1
            for other in range(self.count):
                self.boxes[rank, half, other, sending] = sent[other]
                self.boxes[other, half, rank, sending] = 0
            given = parts[rank].clone()
            made = run(mailboxes, given)
            results.append(given if made is None else made)
            for other in range(self.count):
                if other != rank:
                    assert torch.equal(self.boxes[other, half, rank, sending], sent[rank])
        return results


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("count", [2, 4])
def test_all_ranks_have_the_same_sum(dtype: torch.dtype, count: int) -> None:
    torch.manual_seed(0)
    ranks = Ranks(count)
    for size in (600, 90, 600):  # the second takes fewer programs than the others
        parts = torch.randn(count, size, device=DEVICE).to(dtype)
        results = ranks.exchange(parts, Mailboxes.add_up)
        assert all(torch.equal(result, results[0]) for result in results)
        assert torch.allclose(results[0].double(), parts.double().sum(0), rtol=1e-2, atol=2e-2)
    for mailboxes in ranks.mailboxes:
        assert mailboxes.counts[0] == 3
        assert mailboxes.counts[-1] == 0


@pytest.mark.parametrize("count", [2, 4])
def test_ranks_take_turns_at_sums_broadcasts_and_gathered_words(count: int) -> None:
    torch.manual_seed(0)
    ranks = Ranks(count)
    for _ in range(2):
        tokens = torch.randint(-1, 2**31 - 1, (count, 3), dtype=torch.int32, device=DEVICE)
        assert all(torch.equal(result, tokens[0]) for result in ranks.exchange(tokens, Mailboxes.broadcast))
        logits = torch.randn(count, 2, 300, device=DEVICE).to(torch.bfloat16)
        assert all(torch.equal(result, logits) for result in ranks.exchange(logits, Mailboxes.gather))
        parts = torch.randn(count, 40, device=DEVICE)
        assert torch.allclose(ranks.exchange(parts, Mailboxes.add_up)[-1], parts.sum(0), atol=1e-5)


def test_more_than_a_mailbox_holds_is_exchanged_in_pieces() -> None:
    torch.manual_seed(0)
    parts = torch.randn(2, CAPACITY + 300, device=DEVICE)
    for run, expected in ((Mailboxes.gather, parts), (Mailboxes.add_up, parts[0] + parts[1])):
        ranks = Ranks(2)
        for piece, half in ((parts[1, :CAPACITY], 1), (parts[1, CAPACITY:], 0)):
            counts = torch.full((CAPACITY // BLOCK,), 2 - half, dtype=torch.int32, device=DEVICE)
            ranks.boxes[0, half, 1, : len(piece)] = words(piece, counts)
        given = parts[0].clone()
        made = run(ranks.mailboxes[0], given)
        assert torch.allclose(given if made is None else made, expected, atol=1e-6)
        assert torch.equal(ranks.boxes[1, 0, 0, :300], words(parts[0, CAPACITY:], torch.full_like(counts, 2)))


def test_words_beyond_the_tensor_are_left_alone() -> None:
    room = torch.ones(BLOCK + 64, device=DEVICE)
    ranks = Ranks(1)
    ranks.mailboxes[0].add_up(room[:40])
    assert torch.equal(room, torch.ones_like(room))
    assert not ranks.boxes.any()


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from mllama_cli.kernels.cuda.rank_exchange import rank_exchange_kernel as kernel
constants = {"RANK": 1, "RANKS": 4, "CAPACITY": 4096, "BLOCK": 256}
for capability, kind in ((80, "bfloat16"), (90, "bfloat16"), (90, "float32"), (90, "first"), (90, "gather")):
    constants |= {"KIND": kind, "ASSEMBLY": True, "PDL": capability >= 90}
    types = {"x": "*bf16", "out": "*bf16", "words": "i32", "stride": "i32"}
    types |= {"addresses": "*i64", "counts": "*i32", "stop": "*i32"}
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
