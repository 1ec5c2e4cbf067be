"""Multiply the words of packed rows by activations, in the way that suits their code: what packed products share."""

import triton
import triton.language as tl

from mllama_cli.kernels.cuda.fixed_point import fix_activations, fixed_product
from mllama_cli.kernels.cuda.gemv import load_activations, load_norm
from mllama_cli.kernels.cuda.halves import half_product, halve_activations
from mllama_cli.kernels.cuda.unpack import as_biased_float, unit_of


@triton.jit
def load_norms(norm, WORDS: tl.constexpr, within, here, BITS: tl.constexpr, HAS_NORM: tl.constexpr):
    """Load the norm's weights [Q, 1, 4] for each number of a word, if there is a norm: a tuple of 8 or, twice, 4."""
    n0 = load_norm(norm, 0, WORDS, within, here, HAS_NORM)
    n1 = load_norm(norm, 1, WORDS, within, here, HAS_NORM)
    n2 = load_norm(norm, 2, WORDS, within, here, HAS_NORM)
    n3 = load_norm(norm, 3, WORDS, within, here, HAS_NORM)
    n4, n5, n6, n7 = n0, n1, n2, n3
    if BITS == 4:
        n4 = load_norm(norm, 4, WORDS, within, here, HAS_NORM)
        n5 = load_norm(norm, 5, WORDS, within, here, HAS_NORM)
        n6 = load_norm(norm, 6, WORDS, within, here, HAS_NORM)
        n7 = load_norm(norm, 7, WORDS, within, here, HAS_NORM)
    return n0, n1, n2, n3, n4, n5, n6, n7


@triton.jit
def load_numbers(x, norms, WORDS: tl.constexpr, within, here, BITS: tl.constexpr, HAS_NORM: tl.constexpr):
    """Load activations [Q, 1, 4] for each number of a word, times ``load_norms``, like these; last, their squares."""
    x0, squares = load_activations(x, norms[0], 0, WORDS, within, here, HAS_NORM)
    x1, more = load_activations(x, norms[1], 1, WORDS, within, here, HAS_NORM)
    squares += more
    x2, more = load_activations(x, norms[2], 2, WORDS, within, here, HAS_NORM)
    squares += more
    x3, more = load_activations(x, norms[3], 3, WORDS, within, here, HAS_NORM)
    squares += more
    x4, x5, x6, x7 = x0, x1, x2, x3
    if BITS == 4:
        x4, more = load_activations(x, norms[4], 4, WORDS, within, here, HAS_NORM)
        squares += more
        x5, more = load_activations(x, norms[5], 5, WORDS, within, here, HAS_NORM)
        squares += more
        x6, more = load_activations(x, norms[6], 6, WORDS, within, here, HAS_NORM)
        squares += more
        x7, more = load_activations(x, norms[7], 7, WORDS, within, here, HAS_NORM)
        squares += more
    return x0, x1, x2, x3, x4, x5, x6, x7, squares


@triton.jit
def operands_of(x, BITS: tl.constexpr, CODE: tl.constexpr, HALVES: tl.constexpr, CAPABILITY: tl.constexpr):
    """Return activations, the first 8 of a tuple, as ``multiply`` takes them."""
    if CODE == "int":
        return fix_activations(x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7], BITS, CAPABILITY)
    elif HALVES:
        return halve_activations(x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7], BITS, CODE, CAPABILITY)
    else:
        return x


@triton.jit
def multiply(
    words, x, table, pairs, BITS: tl.constexpr, CODE: tl.constexpr, HALVES: tl.constexpr, CAPABILITY: tl.constexpr
):
    """Multiply the numbers of words [Q, N, C, 4] by what ``operands_of`` returned -> float32 [Q, N, C].

    ``table`` is what ``share_table`` returned for ``pairs``.
    """
    if CODE == "int":
        return fixed_product(words, x[0], x[1], x[2], x[3], x[4], x[5], BITS, CAPABILITY)
    elif HALVES:
        return half_product(words, x[0], x[1], x[2], x[3], table, pairs, BITS, CODE, CAPABILITY) * x[4]
    else:
        total = as_biased_float(words, 0, BITS, CODE, CAPABILITY) * x[0]
        total += as_biased_float(words, 1, BITS, CODE, CAPABILITY) * x[1]
        total += as_biased_float(words, 2, BITS, CODE, CAPABILITY) * x[2]
        total += as_biased_float(words, 3, BITS, CODE, CAPABILITY) * x[3]
        if BITS == 4:
            total += as_biased_float(words, 4, BITS, CODE, CAPABILITY) * x[4]
            total += as_biased_float(words, 5, BITS, CODE, CAPABILITY) * x[5]
            total += as_biased_float(words, 6, BITS, CODE, CAPABILITY) * x[6]
            total += as_biased_float(words, 7, BITS, CODE, CAPABILITY) * x[7]
        return tl.sum(total, axis=len(total.shape) - 1) * unit_of(CODE, CAPABILITY)
