"""`import flash_attn` after install, and flash-attn's helpers for rotation and padding."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from flash_attention import flash_attn_interface as fa
from torch import Tensor

from support.flash_attn_reference import rotate
from support.problems import DTYPES, dtype_name
from support.tolerances import CLOSE

pytestmark = pytest.mark.once


@pytest.fixture
def installed() -> Iterator[None]:
    fa.install()
    yield
    fa.uninstall()


@pytest.mark.usefixtures("installed")
def test_what_callers_import_is_there() -> None:
    import flash_attn
    import flash_attn.layers.rotary as rotary
    from flash_attn import bert_padding, flash_attn_interface

    assert flash_attn.__version__ == "2.8.3"
    functions = [n for n in fa.__all__ if n.startswith("flash_attn_")]
    assert len(functions) == 7
    for name in functions:
        assert getattr(flash_attn, name) is getattr(fa, name)
        assert getattr(flash_attn_interface, name) is getattr(fa, name)
    for name in ("index_first_axis", "index_put_first_axis", "pad_input", "unpad_input"):
        assert getattr(bert_padding, name) is getattr(fa, name)
    assert rotary.apply_rotary_emb is rotary.apply_rotary_emb_func is fa.apply_rotary_emb
    q = torch.randn(1, 3, 2, 4)
    assert torch.equal(flash_attn.flash_attn_func(q, q, q), fa.flash_attn_func(q, q, q))


@pytest.mark.usefixtures("installed")
def test_what_callers_check_first() -> None:
    for name in ("flash_attn", "flash_attn.flash_attn_interface", "flash_attn.bert_padding"):
        assert importlib.util.find_spec(name).name == name
    assert importlib.metadata.version("flash_attn") == "2.8.3"
    assert importlib.metadata.version("flash-attn") == "2.8.3"
    assert importlib.metadata.packages_distributions()["flash_attn"] == ["flash-attn"]
    # Other distributions are found as before.
    assert importlib.metadata.version("torch") == torch.__version__
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("no-such-package")


@pytest.mark.usefixtures("installed")
def test_what_is_not_there_cannot_be_imported() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"flash_attn\.ops"):
        importlib.import_module("flash_attn.ops.triton.rotary")
    with pytest.raises(ImportError, match="_flash_attn_forward"):
        from flash_attn.flash_attn_interface import _flash_attn_forward  # noqa: F401


def test_uninstall_leaves_nothing() -> None:
    before = list(sys.meta_path)
    fa.uninstall()  # no effect
    fa.install()
    fa.install()
    fa.uninstall()
    assert sys.meta_path == before
    assert not [name for name in sys.modules if name.split(".")[0] == "flash_attn"]
    assert importlib.util.find_spec("flash_attn") is None
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("flash_attn")


def test_a_flash_attn_that_is_installed_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "flash_attn.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RuntimeError, match="expected no flash_attn, got one from .*flash_attn.py"):
        fa.install()
    assert "flash_attn" not in sys.modules
    importlib.import_module("flash_attn")
    try:
        with pytest.raises(RuntimeError, match="expected no flash_attn, got one from"):
            fa.install()
    finally:
        del sys.modules["flash_attn"]


def table(rows: int, pairs: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    angle = torch.rand(rows, pairs, dtype=torch.float64) * 2 * math.pi
    return angle.cos().to(dtype), angle.sin().to(dtype)


@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "pairs"])
@pytest.mark.parametrize("pairs", [0, 3, 6], ids="rotary_dim / 2 = {}".format)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_rotation_matches_the_definition(dtype: torch.dtype, pairs: int, interleaved: bool) -> None:
    cos, sin = table(20, pairs, dtype)
    x = torch.randn(2, 5, 3, 12, dtype=torch.float64).to(dtype)
    for offsets in (4, torch.tensor([0, 15], dtype=torch.int32)):
        first = [offsets] * 2 if isinstance(offsets, int) else offsets.tolist()
        at = [torch.arange(5) + n for n in first]
        wanted = torch.stack([rotate(x[n], cos, sin, at[n], interleaved) for n in range(2)])
        found = fa.apply_rotary_emb(x, cos, sin, interleaved, seqlen_offsets=offsets)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=CLOSE[dtype])
        packed = fa.apply_rotary_emb(
            x.flatten(0, 1),
            cos,
            sin,
            interleaved,
            seqlen_offsets=offsets,
            cu_seqlens=torch.tensor([0, 5, 10], dtype=torch.int32),
            max_seqlen=5,
        )
        assert torch.equal(packed, found.flatten(0, 1))
    own = x.clone()
    assert fa.apply_rotary_emb(own, cos, sin, interleaved, True, offsets) is own
    assert torch.equal(own, found)


def test_rotation_has_gradients() -> None:
    cos, sin = (t.requires_grad_() for t in table(4, 2, torch.float64))
    x = torch.randn(1, 3, 1, 6, dtype=torch.float64, requires_grad=True)
    for interleaved in (False, True):
        assert torch.autograd.gradcheck(
            lambda *a, pairs=interleaved: fa.apply_rotary_emb(*a, pairs, seqlen_offsets=1),
            (x, cos, sin),
        )


def test_rotation_compiles_in_one_graph() -> None:
    cos, sin = table(20, 3, torch.float64)
    x = torch.randn(2, 5, 3, 12, dtype=torch.float64)

    def rotation(x: Tensor) -> Tensor:
        return fa.apply_rotary_emb(x, cos, sin, seqlen_offsets=7)

    compiled = torch.compile(rotation, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), rotation(x))


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"x": torch.zeros(2, 3, 8)}, ValueError, r"x \[batch, seqlen, nheads, headdim\]"),
        ({"x": torch.zeros(2, 3, 4, 8).long()}, TypeError, "x of float32"),
        ({"sin": torch.zeros(5, 3)}, ValueError, r"sin \[.*rotary_dim / 2 = 4\]"),
        ({"cos": torch.zeros(5, 5), "sin": torch.zeros(5, 5)}, ValueError, "rotary_dim = 10"),
        ({"seqlen_offsets": 3}, ValueError, "positions 3 to 5, got 5 rows"),
        ({"seqlen_offsets": -1}, ValueError, "positions -1 to 1"),
        ({"seqlen_offsets": torch.zeros(3).int()}, ValueError, r"seqlen_offsets \[2\], got \[3\]"),
        ({"seqlen_offsets": torch.zeros(2)}, TypeError, "seqlen_offsets.*int32"),
    ],
)
def test_invalid_rotations_are_refused(
    changes: dict[str, object], error: type[Exception], text: str
) -> None:
    arguments = {"x": torch.zeros(2, 3, 4, 8), "cos": torch.zeros(5, 4), "sin": torch.zeros(5, 4)}
    fa.apply_rotary_emb(**arguments)
    with pytest.raises(error, match=text):
        fa.apply_rotary_emb(**arguments | changes)


def test_padding_is_removed_and_put_back() -> None:
    x = torch.randn(3, 4, 2, 5, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [0, 1, 1, 1]])
    for given in (mask, mask.bool()):
        rows, indices, cu_seqlens, longest, used = fa.unpad_input(x, given)
        assert torch.equal(rows, x[mask.bool()])
        assert indices.tolist() == [0, 1, 9, 10, 11]
        assert cu_seqlens.tolist() == [0, 2, 2, 5] and cu_seqlens.dtype == torch.int32
        assert longest == 3 and used.tolist() == [2, 0, 3]
        back = fa.pad_input(rows, indices, 3, 4)
        assert torch.equal(back, x * mask.view(3, 4, 1, 1))
        (grad,) = torch.autograd.grad(back.square().sum(), x)
        assert torch.equal(grad, 2 * back)
    rows, _, cu_seqlens, longest, used = fa.unpad_input(x, mask, 1 - mask)
    assert torch.equal(rows, x.flatten(0, 1))
    assert cu_seqlens.tolist() == [0, 4, 8, 12] and longest == 4 and used.tolist() == [2, 0, 3]
    rows, indices, cu_seqlens, longest, _ = fa.unpad_input(x[:0], mask[:0])
    assert rows.shape == (0, 2, 5) and cu_seqlens.tolist() == [0] and longest == 0
    with pytest.raises(ValueError, match=r"attention_mask \[3, 4\], got \[3, 5\]"):
        fa.unpad_input(x, torch.ones(3, 5))
