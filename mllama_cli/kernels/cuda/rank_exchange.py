"""Add up, broadcast or gather a small tensor over GPUs that can write each other's memory, in one kernel.

As NCCL does for small messages (LL), each GPU writes its words into a mailbox in every other's memory, and with each
word the count of this exchange, in 64 bits that arrive whole. The reader waits for the count in its own memory, so an
exchange takes one way over the link and no barrier. Mailboxes alternate between two halves: a GPU that has received the
words of exchange n + 1 knows that their sender has read those of exchange n. So all send, even what a broadcast
ignores.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from mllama_cli.kernels.cuda.launch import gdc_launch_dependents, gdc_wait, launch

BLOCK = 256
"""Words of 32 bits that a program exchanges, one in each thread."""

SEND = tl.constexpr("""{
.reg .pred absent;
setp.eq.s32 absent, $3, 0;
@!absent st.relaxed.sys.global.b64 [$1], $2;
mov.b32 $0, 0;
}""")

RECEIVE = tl.constexpr("""{
.reg .pred done, more;
.reg .b32 number, count, polls, stopped;
.reg .b64 word;
mov.b32 number, 0;
mov.b32 polls, 0;
setp.eq.s32 done, $4, 0;
@done bra RECEIVED;
POLL:
ld.relaxed.sys.global.b64 word, [$1];
mov.b64 {number, count}, word;
setp.eq.s32 done, count, $2;
@done bra RECEIVED;
add.u32 polls, polls, 1;
and.b32 stopped, polls, 0x3FFF;
setp.ne.u32 more, stopped, 0;
@more bra POLL;
ld.relaxed.sys.global.b32 stopped, [$3];
setp.eq.u32 more, stopped, 0;
@more bra POLL;
RECEIVED:
mov.b32 $0, number;
}""")


@triton.jit
def send(target, number, count, kept, ASSEMBLY: tl.constexpr):
    """Write words and the count of the exchange to mailboxes at ``target``, each pair as one word."""
    word = (count.to(tl.int64) << 32) | (number.to(tl.int64) & 0xFFFFFFFF)
    if ASSEMBLY:
        tl.inline_asm_elementwise(SEND, "=r,l,l,r", [target.to(tl.int64), word, kept.to(tl.int32)], tl.int32, False, 1)
    else:
        tl.store(target, word, mask=kept)


@triton.jit
def receive(source, count, stop, kept, ASSEMBLY: tl.constexpr):
    """Wait until mailboxes hold words of this exchange, or ``stop`` is not 0, and return the words."""
    if ASSEMBLY:
        return tl.inline_asm_elementwise(
            RECEIVE,
            "=r,l,r,l,r",
            [source.to(tl.int64), count, stop.to(tl.int64), kept.to(tl.int32)],
            tl.int32,
            False,
            1,
        )
    else:
        return (tl.load(source, mask=kept, other=0) & 0xFFFFFFFF).to(tl.int32)


@triton.jit
def numbers_of(words, HIGH: tl.constexpr, KIND: tl.constexpr):
    """Return the only, lower or higher number in each word as float32."""
    if KIND == "float32":
        return words.to(tl.float32, bitcast=True)
    half = ((words >> 16) if HIGH else words).to(tl.int16)
    if KIND == "bfloat16":
        return half.to(tl.bfloat16, bitcast=True).to(tl.float32)
    else:
        return half.to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def halves_of(numbers, KIND: tl.constexpr):
    """Return numbers rounded to 16 bits, as int32 from 0 to 65535."""
    if KIND == "bfloat16":
        half = numbers.to(tl.bfloat16).to(tl.int16, bitcast=True)
    else:
        half = numbers.to(tl.float16).to(tl.int16, bitcast=True)
    return half.to(tl.int32) & 0xFFFF


@triton.jit(do_not_specialize=["words", "stride"])
def rank_exchange_kernel(
    x, out, words, stride, addresses, counts, stop,
    RANK: tl.constexpr, RANKS: tl.constexpr, CAPACITY: tl.constexpr, KIND: tl.constexpr,
    BLOCK: tl.constexpr, ASSEMBLY: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    gdc_launch_dependents(PDL)  # so that the next product loads its first weights meanwhile
    program = tl.program_id(0)
    index = program * BLOCK + tl.arange(0, BLOCK)
    kept = index < words
    x, out = x.to(tl.pointer_type(tl.int32)), out.to(tl.pointer_type(tl.int32))
    ours = tl.load(addresses + RANK).to(tl.pointer_type(tl.int64))
    gdc_wait(PDL)
    count = tl.load(counts + program) + 1
    own = tl.load(x + index, mask=kept, other=0)
    half = (count & 1) * (RANKS * CAPACITY)
    for rank in tl.static_range(RANKS):
        if rank != RANK:
            theirs = tl.load(addresses + rank).to(tl.pointer_type(tl.int64))
            send(theirs + half + RANK * CAPACITY + index, own, count, kept, ASSEMBLY)
    low = tl.zeros([BLOCK], tl.float32)
    high = tl.zeros([BLOCK], tl.float32)
    first = own
    for rank in tl.static_range(RANKS):  # in the same order everywhere, so that all have the same sum
        received = own
        if rank != RANK:
            received = receive(ours + half + rank * CAPACITY + index, count, stop, kept, ASSEMBLY)
        if KIND == "gather":
            tl.store(out + rank * stride + index, received, mask=kept)
        elif KIND == "first":
            if rank == 0:
                first = received
        else:
            low += numbers_of(received, False, KIND)
            if KIND != "float32":
                high += numbers_of(received, True, KIND)
    if KIND == "first":
        tl.store(out + index, first, mask=kept)
    elif KIND == "float32":
        tl.store(out + index, low.to(tl.int32, bitcast=True), mask=kept)
    elif KIND != "gather":
        tl.store(out + index, halves_of(low, KIND) | (halves_of(high, KIND) << 16), mask=kept)
    tl.debug_barrier()  # all threads have loaded the count
    tl.store(counts + program, count)


@dataclass(frozen=True)
class Mailboxes:
    """What a rank needs to exchange words with all others, which do the same in the same order.

    ``addresses`` int64 [ranks] are those of each rank's mailbox, int64 [2, ranks, capacity], which was zeroed before
    the first exchange. ``counts`` int32 [programs] counts a rank's exchanges, from 0. Ranks whose words do not come are
    waited for until ``stop`` int32 [1], in pinned memory, is set; the result is meaningless then.
    """

    addresses: Tensor
    counts: Tensor
    stop: Tensor
    rank: int
    capacity: int

    def add_up(self, x: Tensor) -> None:
        """Replace a contiguous tensor of 16-bit or 32-bit floating point by the sum of all ranks', in their order."""
        self._exchange(x, x, str(x.dtype).removeprefix("torch."))

    def broadcast(self, x: Tensor) -> None:
        """Replace a contiguous tensor of whole words by that of rank 0."""
        self._exchange(x, x, "first")

    def gather(self, x: Tensor) -> Tensor:
        """Return the contiguous tensors of all ranks [ranks, ...], of whole words, in the order of the ranks."""
        out = torch.empty((len(self.addresses), *x.shape), dtype=x.dtype, device=x.device)
        self._exchange(x, out, "gather")
        return out

    def _exchange(self, x: Tensor, out: Tensor, kind: str) -> None:
        words = x.nbytes // 4
        if words <= self.capacity:
            self._launch(x, out, words, words, kind)
            return
        x, out, size = x.view(-1), out.view(-1), 4 * self.capacity // x.itemsize
        for start in range(0, len(x), size):
            piece = x[start : start + size]
            self._launch(piece, out[start:], piece.nbytes // 4, words, kind)

    def _launch(self, x: Tensor, out: Tensor, words: int, stride: int, kind: str) -> None:
        """Exchange as many words as a mailbox holds; what is gathered is ``stride`` words apart."""
        launch(
            rank_exchange_kernel, (triton.cdiv(words, BLOCK),), x, out, words, stride, self.addresses, self.counts,
            self.stop, self.rank, len(self.addresses), self.capacity, kind, BLOCK,
            device=x.device, warps=8, ASSEMBLY=x.is_cuda,
        )  # fmt: skip
