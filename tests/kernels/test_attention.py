"""Which attention runs, and that each gives the same; FlashAttention is played on a CPU, and itself on a GPU."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mllama_cli.kernels import attention

CUDA = torch.cuda.is_available()
DEVICE, DTYPE = torch.device("cuda:0" if CUDA else "cpu"), torch.bfloat16 if CUDA else torch.float32


def played(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
    return exact(q, k, v, causal=causal)


def exact(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
    """The rows are the last of the keys."""
    rows, keys = q.shape[2], k.shape[2]
    mask = torch.ones(rows, keys, dtype=torch.bool, device=q.device).tril(keys - rows) if causal else None
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(rows, keys) of each call of FlashAttention."""
    calls: list[tuple[int, int]] = []
    real = attention._flash if CUDA else played

    def counted(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
        calls.append((q.shape[2], k.shape[2]))
        return real(q, k, v, causal=causal)

    attention.flashes.cache_clear()
    if CUDA:
        assert attention.flashes(DEVICE, DTYPE, 64)
    else:
        monkeypatch.setattr(attention, "flashes", lambda *_: True)
    monkeypatch.setattr(attention, "_flash", counted)
    monkeypatch.setattr(attention, "_pairs", {})
    return calls


def tensors(rows: int, keys: int, heads: int = 6, kv_heads: int = 2, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows + keys)
    q = torch.randn(batch, rows, heads, 64, generator=generator).transpose(1, 2)
    k, v = (torch.randn(batch, kv_heads, keys + 7, 64, generator=generator)[:, :, :keys] for _ in range(2))
    return tuple(t.to(DEVICE, DTYPE) for t in (q, k, v))  # type: ignore[return-value]


def close(ours: Tensor, theirs: Tensor) -> bool:
    return bool((ours - theirs).norm() < (1e-2 if CUDA else 1e-5) * theirs.norm())


@pytest.mark.parametrize(("rows", "keys"), [(24, 24), (5, 40), (1, 9), (300, 301)])
@torch.inference_mode()
def test_rows_see_what_stands_before_them(flash: list[tuple[int, int]], rows: int, keys: int) -> None:
    q, k, v = tensors(rows, keys)
    assert close(attention.causal_attention(q, k, v), exact(q, k, v, causal=True))
    assert flash == [(rows, keys)]


@torch.inference_mode()
def test_equal_shapes_get_the_librarys_choice_once_that_pays(
    flash: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    q, k, v = tensors(20, 20)
    monkeypatch.setattr(attention, "PLAN", 3 * 2 * 6 * 20 * 20 // 2)
    for _ in range(5):
        assert close(attention.causal_attention(q, k, v), exact(q, k, v, causal=True))
    assert len(flash) == 3
    longer = tensors(20, 21)  # no library knows rows at the end of more keys: they never change
    for _ in range(9):
        attention.causal_attention(*longer)
    assert len(flash) == 12


@torch.inference_mode()
def test_attention_over_all_keys(flash: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = tensors(8, 50, heads=2)
    monkeypatch.setattr(attention, "PLAN", 1)
    first = attention.attention(q, k, v)
    assert close(first, exact(q, k, v, causal=False))
    assert len(flash) == (1 if CUDA else 0)  # a CPU has kernels of its own
    assert close(attention.attention(q, k, v), first)
    mask = torch.ones(8, 50, dtype=torch.bool, device=DEVICE).tril(42)
    assert close(attention.attention(q, k, v, mask), exact(q, k, v, causal=True))
    assert len(flash) == (1 if CUDA else 0)


def test_what_is_trained_keeps_its_gradients(flash: list[tuple[int, int]]) -> None:
    q, k, v = (t.requires_grad_() for t in tensors(6, 6))
    attention.causal_attention(q, k, v).sum().backward()
    assert q.grad is not None
    assert not flash


def test_a_cpu_has_no_flash_attention() -> None:
    assert not attention.flashes(torch.device("cpu"), torch.bfloat16, 64)
