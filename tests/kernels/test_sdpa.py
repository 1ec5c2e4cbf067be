"""Test which attention runs and that all agree; a CPU has a stand-in for FlashAttention."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mllama_cli.kernels import sdpa

CUDA = torch.cuda.is_available()
DEVICE, DTYPE = torch.device("cuda:0" if CUDA else "cpu"), torch.bfloat16 if CUDA else torch.float32
Call = tuple[int, int]


def played(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
    return exact(q, k, v, causal=causal)


def exact(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
    """Compute attention in which the rows are the last of the keys."""
    rows, keys = q.shape[2], k.shape[2]
    mask = torch.ones(rows, keys, dtype=torch.bool, device=q.device).tril(keys - rows) if causal else None
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Record (rows, keys) of each call of FlashAttention."""
    calls: list[Call] = []
    real = sdpa._flash if CUDA else played

    def counted(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
        calls.append((q.shape[2], k.shape[2]))
        return real(q, k, v, causal=causal)

    sdpa.has_flash_attention.cache_clear()
    if CUDA:
        assert sdpa.has_flash_attention(DEVICE, DTYPE, 64)
    else:
        monkeypatch.setattr(sdpa, "has_flash_attention", lambda *_: True)
    monkeypatch.setattr(sdpa, "_flash", counted)
    return calls


def tensors(rows: int, keys: int, heads: int = 6, kv_heads: int = 2, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows + keys)
    q = torch.randn(batch, rows, heads, 64, generator=generator).transpose(1, 2)
    k, v = (torch.randn(batch, kv_heads, keys + 7, 64, generator=generator)[:, :, :keys] for _ in range(2))
    return tuple(t.to(DEVICE, DTYPE) for t in (q, k, v))  # type: ignore[return-value]


def close(ours: Tensor, theirs: Tensor) -> bool:
    return bool((ours - theirs).norm() < (1e-2 if CUDA else 1e-5) * theirs.norm())


@pytest.mark.parametrize(("rows", "keys"), [(24, 24), (5, 40), (1, 9), (300, 301), (1024, 1100)])
@torch.inference_mode()
def test_rows_see_themselves_and_the_keys_before_them(flash: list[Call], rows: int, keys: int) -> None:
    q, k, v = tensors(rows, keys, heads=2, kv_heads=1)
    assert close(sdpa.causal_attention(q, k, v), exact(q, k, v, causal=True))
    assert flash == [(rows, keys)]


@pytest.mark.parametrize("rows", [1024, 2048])
@torch.inference_mode()
def test_squares_that_recur_get_the_librarys_choice(flash: list[Call], rows: int) -> None:
    q, k, v = tensors(rows, rows, heads=2, kv_heads=1, batch=1)
    assert close(sdpa.causal_attention(q, k, v), exact(q, k, v, causal=True))
    assert not flash


@torch.inference_mode()
def test_the_choice_does_not_depend_on_what_was_computed_before(
    flash: list[Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Try each shape once, after thousands of equal calls, and after thousands of others."""
    shapes = [(20, 20), (20, 21), (1, 40), (1024, 1024), (1025, 1025), (4096, 4096), (4096, 8192), (64, 6404)]
    library: list[Call] = []

    def cheap(q: Tensor, k: Tensor, v: Tensor, **_: object) -> Tensor:
        library.append((q.shape[2], k.shape[2]))
        return q

    def counted(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
        flash.append((q.shape[2], k.shape[2]))
        return q

    monkeypatch.setattr(sdpa.F, "scaled_dot_product_attention", cheap)
    monkeypatch.setattr(sdpa, "_flash", counted)
    # Expanded tensors have a prompt's shapes without taking its memory.
    asked = [
        tuple(torch.zeros(1, 1, 1, 1, device=DEVICE, dtype=DTYPE).expand(1, 32, n, 64) for n in (r, k, k))
        for r, k in shapes
    ]

    def choices() -> tuple[list[Call], list[Call]]:
        flash.clear()
        library.clear()
        for q, k, v in asked:
            sdpa.causal_attention(q, k, v)
        return list(flash), list(library)

    first = choices()
    assert first[1] == [(1024, 1024), (4096, 4096)]
    for _ in range(1000):
        assert choices() == first


@torch.inference_mode()
def test_attention_over_all_keys(flash: list[Call]) -> None:
    q, k, v = tensors(8, 50, heads=2)
    first = sdpa.attention(q, k, v)
    assert close(first, exact(q, k, v, causal=False))
    assert len(flash) == (1 if CUDA else 0)  # a CPU has its own kernels
    for _ in range(9):
        assert torch.equal(sdpa.attention(q, k, v), first)
    assert len(flash) == (10 if CUDA else 0)
    mask = torch.ones(8, 50, dtype=torch.bool, device=DEVICE).tril(42)
    assert close(sdpa.attention(q, k, v, mask), exact(q, k, v, causal=True))
    assert len(flash) == (10 if CUDA else 0)


@torch.inference_mode()
def test_an_encoder_gets_the_librarys_choice_some_heads_at_a_time_on_a_cpu(
    flash: list[Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    q, k, v = tensors(20, 30, heads=6, kv_heads=6)
    whole = sdpa.encoder_attention(q, k, v, 0.2)
    assert close(whole, F.scaled_dot_product_attention(q, k, v, scale=0.2))
    monkeypatch.setattr(sdpa, "CPU_PAIRS", 4 * 20 * 30)
    assert close(sdpa.encoder_attention(q, k, v, 0.2), whole)
    assert not flash


def test_what_is_trained_keeps_its_gradients(flash: list[Call]) -> None:
    q, k, v = (t.requires_grad_() for t in tensors(6, 6))
    sdpa.causal_attention(q, k, v).sum().backward()
    assert q.grad is not None
    assert not flash


def test_a_cpu_and_an_old_gpu_have_no_flash_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLLAMA_STRICT_KERNELS", "1")
    assert not sdpa.has_flash_attention(torch.device("cpu"), torch.bfloat16, 64)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert not sdpa.has_flash_attention(torch.device("cuda", 99), torch.bfloat16, 64)
    sdpa.has_flash_attention.cache_clear()


def test_forms_of_the_decode_kernel() -> None:
    assert sdpa.supports_decode_attention(torch.bfloat16, 128)
    assert not sdpa.supports_decode_attention(torch.bfloat16, 80)
    assert not sdpa.supports_decode_attention(torch.float64, 64)
    assert not sdpa.has_decode_attention(torch.device("cpu"), torch.float32, 64)
