"""Experiment: a product with bias and exact GELU in one Triton kernel."""
import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from mllama_cli.kernels.cuda.elementwise import gelu_of
from mllama_cli.kernels.cuda.launch import multiprocessors


@triton.jit
def tile_of(tile, M, N, BM: tl.constexpr, BN: tl.constexpr, GROUP: tl.constexpr):
    rows = tl.cdiv(M, BM)
    columns = tl.cdiv(N, BN)
    in_group = GROUP * columns
    first = tile // in_group * GROUP
    size = tl.minimum(rows - first, GROUP)
    return first + tile % in_group % size, tile % in_group // size


@triton.jit
def product_gelu(
    x, w, bias, out, M, N, K,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, PROGRAMS: tl.constexpr,
    FLAT: tl.constexpr, GELU: tl.constexpr, HALVES: tl.constexpr,
):
    tiles = tl.cdiv(M, BM) * tl.cdiv(N, BN)
    for tile in tl.range(tl.program_id(0), tiles, PROGRAMS, flatten=FLAT):
        m, n = tile_of(tile, M, N, BM, BN, GROUP)
        sums = tl.zeros([BM, BN], tl.float32)
        for k in range(0, K, BK):
            sums = tl.dot(x.load([m * BM, k]), w.load([n * BN, k]).T, sums)
        if HALVES:
            first, second = tl.permute(tl.reshape(sums, [BM, 2, BN // 2]), [0, 2, 1]).split()
            first += tl.load(bias + n * BN + tl.arange(0, BN // 2)).to(tl.float32)[None, :]
            out.store([m * BM, n * BN], gelu_of(first).to(out.dtype))
            second += tl.load(bias + n * BN + BN // 2 + tl.arange(0, BN // 2)).to(tl.float32)[None, :]
            out.store([m * BM, n * BN + BN // 2], gelu_of(second).to(out.dtype))
        else:
            sums += tl.load(bias + n * BN + tl.arange(0, BN)).to(tl.float32)[None, :]
            if GELU:
                sums = gelu_of(sums)
            out.store([m * BM, n * BN], sums.to(out.dtype))


def fc_gelu(x, w, bias, *, bm=128, bn=256, bk=64, warps=8, stages=3, per=1, persistent=True, flat=True, gelu=True, halves=False):
    m, k = x.shape
    n = w.shape[0]
    out = x.new_empty(m, n)
    tiles = triton.cdiv(m, bm) * triton.cdiv(n, bn)
    programs = min(tiles, multiprocessors(x.device) * per) if persistent else tiles

    def blocks(t, a, b):
        return TensorDescriptor(t, list(t.shape), list(t.stride()), [a, b])

    product_gelu[(programs,)](
        blocks(x, bm, bk), blocks(w, bn, bk), bias, blocks(out, bm, bn // 2 if halves else bn), m, n, k, bm, bn, bk, 8,
        programs, flat, gelu, halves, num_warps=warps, num_stages=stages,
    )
    return out
