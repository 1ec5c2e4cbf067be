"""Have the memory read what later kernels need into the GPU's L2 cache, while this one computes or waits.

Weights do not depend on activations, so memory need not idle while programs start, wait for one another and reduce. The
instruction takes no registers for what it asks for: one thread asks for kilobytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
import triton
import triton.language as tl
from torch import Tensor

LINE = 128
"""Bytes of a line of the L2 cache."""

MAX_ENTRIES = 32
"""What the threads of one warp ask for, each its own."""

PREFETCH_ASSEMBLY = tl.constexpr("""{
.reg .pred skip;
.reg .b32 thread, bytes;
.reg .b64 entry, base, share;
mov.u32 thread, %tid.x;
setp.ge.u32 skip, thread, $3;
@skip bra PREFETCHED;
mad.wide.u32 entry, thread, 16, $1;
ld.global.nc.L1::evict_last.v2.b64 {base, share}, [entry];
cvt.u32.u64 bytes, share;
setp.eq.u32 skip, bytes, 0;
@skip bra PREFETCHED;
mad.wide.u32 base, bytes, $2, base;
cp.async.bulk.prefetch.L2.global [base], bytes;
PREFETCHED:
mov.b32 $0, 0;
}""")


@triton.jit
def prefetch(table, index, SHARES: tl.constexpr, ENTRIES: tl.constexpr, CAPABILITY: tl.constexpr):
    """Ask for share ``index`` of SHARES of each of the table's ENTRIES, int64 [ENTRIES, 2]: address and bytes of one.

    Nothing is asked for if there is no such share, and before compute capability 9.0.
    """
    if ENTRIES > 0 and CAPABILITY >= 90:
        threads = tl.where(index < SHARES, ENTRIES, 0)
        tl.inline_asm_elementwise(
            PREFETCH_ASSEMBLY, "=r,l,r,r", [table.to(tl.int64), index, threads], tl.int32, False, 1
        )


@dataclass(frozen=True)
class Ahead:
    """What a kernel asks for: ``table`` int64 [entries, 2], the address and the bytes of a share of each."""

    table: Tensor

    @classmethod
    def of(cls, parts: Sequence[tuple[int, int]], shares: int, device: torch.device) -> Self:
        """Return that of parts of memory, as (address, bytes), in so many shares."""
        return cls(torch.tensor(entries(parts, shares), dtype=torch.int64).to(device))


def entries(parts: Sequence[tuple[int, int]], shares: int) -> list[tuple[int, int]]:
    """Return the table of parts of memory, as (address, bytes), in shares of whole lines; the rest is left out."""
    return [(address, share) for address, nbytes in parts if (share := nbytes // shares // LINE * LINE)]
