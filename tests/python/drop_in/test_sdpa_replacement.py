"""`replace_sdpa`: which calls run our kernels, which still go to torch, and how to undo it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import flash_attention
import pytest
import torch
import torch.nn.functional as F
from flash_attention import SdpaReplacement, replace_sdpa
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right, causal_upper_left

from drop_in.torch_samples import samples
from support.problems import DTYPES, dtype_name
from support.sdpa_calls import Call, assert_close_to_torch, operators, runs_ours

pytestmark = pytest.mark.once

torchs = F.scaled_dot_product_attention


@pytest.fixture(autouse=True)
def torch_is_restored() -> Iterator[None]:
    """Checks that torch's function and its fast path are restored after every test."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()
    assert not runs_ours(lambda: torchs(*qkv()))
    assert torch.backends.mha.get_fastpath_enabled()


def qkv(dtype: torch.dtype = torch.float32, grad: bool = False) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = ((2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 8))
    tensors = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    return [t.to(dtype).requires_grad_(grad) for t in tensors]


def under_replacement(*arguments: Tensor, **options: object) -> Tensor:
    with replace_sdpa():
        return torchs(*arguments, **options)


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no-grad"])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_torch_sample_inputs(dtype: torch.dtype, grad: bool) -> None:
    for call in samples(dtype, grad):
        call = replace(call, dropout_p=0.0)
        assert_close_to_torch(call, under_replacement)
        with replace_sdpa():
            assert runs_ours(lambda call=call: torchs(**vars(call)))


def test_results_match_the_drop_in() -> None:
    inputs = qkv()
    for options in ({}, {"is_causal": True}, {"attn_mask": torch.rand(5, 7) < 0.8}):
        expected = flash_attention.scaled_dot_product_attention(*inputs, **options)
        assert torch.equal(under_replacement(*inputs, **options), expected)


def test_no_grad_and_inference_mode() -> None:
    expected = torchs(*qkv())
    with replace_sdpa():
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                inputs = qkv()
                assert runs_ours(lambda inputs=inputs: torchs(*inputs))
                torch.testing.assert_close(torchs(*inputs), expected)


# --- undo


def test_undo_is_idempotent() -> None:
    replacement = replace_sdpa()
    assert runs_ours(lambda: torchs(*qkv()))
    replacement.undo()
    assert not runs_ours(lambda: torchs(*qkv()))
    with replace_sdpa():
        replacement.undo()  # the second undo must not undo the other replacement
        assert runs_ours(lambda: torchs(*qkv()))


def test_nested_replacements_may_be_undone_in_any_order() -> None:
    outer = replace_sdpa()
    with replace_sdpa():
        outer.undo()
        assert runs_ours(lambda: torchs(*qkv()))
        assert not torch.backends.mha.get_fastpath_enabled()
    assert not runs_ours(lambda: torchs(*qkv()))


def test_exception_in_the_block_undoes_the_replacement() -> None:
    with pytest.raises(ZeroDivisionError), replace_sdpa():
        assert runs_ours(lambda: torchs(*qkv()))
        raise ZeroDivisionError
    assert not runs_ours(lambda: torchs(*qkv()))


def test_undone_replacement_cannot_be_entered() -> None:
    replacement = replace_sdpa()
    replacement.undo()
    with pytest.raises(RuntimeError, match="in force, got one undone"), replacement:
        pass


def test_replacement_outlives_a_discarded_result() -> None:
    replace_sdpa()
    try:
        assert runs_ours(lambda: torchs(*qkv()))
    finally:  # the discarded object cannot be used to undo, so undo through a new one
        last = SdpaReplacement.__new__(SdpaReplacement)
        last._undone = False
        last.undo()


def test_fast_path_setting_is_restored() -> None:
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with replace_sdpa():
            pass
        assert not torch.backends.mha.get_fastpath_enabled()
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


# --- threads and processes


def test_calls_are_correct_while_another_thread_switches() -> None:
    inputs = qkv()
    expected = torchs(*inputs)
    stop, wrong = threading.Event(), []

    def compute() -> None:  # either implementation may run, so results differ by rounding
        while not stop.is_set():
            if not torch.allclose(torchs(*inputs), expected, rtol=1e-4, atol=1e-5):
                wrong.append(threading.get_ident())

    threads = [threading.Thread(target=compute) for _ in range(3)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        with replace_sdpa():
            torchs(*inputs)
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_replacement_applies_to_other_threads() -> None:
    found = []
    with replace_sdpa():
        thread = threading.Thread(target=lambda: found.append(runs_ours(lambda: torchs(*qkv()))))
        thread.start()
        thread.join()
    assert found == [True]


def test_undo_waits_for_the_lock() -> None:
    replacement = replace_sdpa()
    thread = threading.Thread(target=replacement.undo)
    with SdpaReplacement._lock:
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        assert runs_ours(lambda: torchs(*qkv()))
    thread.join()
    assert not runs_ours(lambda: torchs(*qkv()))


class Attended(torch.utils.data.Dataset):
    """Attention of random inputs seeded by the index, and the process id."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        x = torch.randn(1, 2, 5, 8, generator=torch.Generator().manual_seed(index))
        return torchs(x, x, x), os.getpid()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_data_loader_workers() -> None:
    expected = torch.stack([Attended()[i][0] for i in range(6)])
    with replace_sdpa():
        loader = torch.utils.data.DataLoader(
            Attended(), batch_size=2, num_workers=2, multiprocessing_context="fork"
        )
        batches = list(loader)
    torch.testing.assert_close(torch.cat([x for x, _ in batches]), expected)
    processes = {pid.item() for _, pids in batches for pid in pids}
    assert len(processes) == 2 and os.getpid() not in processes


# --- calls left to torch


def jagged() -> Tensor:
    parts = [torch.randn(n, 3, 8, generator=torch.Generator().manual_seed(n)) for n in (4, 6)]
    return torch.nested.nested_tensor(parts, layout=torch.jagged).transpose(1, 2)


def forward_mode() -> Tensor:
    q, k, v = qkv()
    with forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):
        return forward_ad.unpack_dual(torchs(forward_ad.make_dual(q, q), k, v)).tangent


def loss(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torchs(q, k, v).square().sum()


LEFT_TO_TORCH: dict[str, Callable[[], Tensor]] = {
    "nested": lambda: torchs(jagged(), jagged(), jagged()).values(),
    "sparse": lambda: torchs(qkv()[0][0, 0].to_sparse(), qkv()[1][0, 0], qkv()[2][0, 0]),
    "forward mode": forward_mode,
    "func.grad": lambda: torch.func.grad(loss)(*qkv()),
    "func.vmap": lambda: torch.func.vmap(torchs)(*qkv()),
    "func.vmap of grad": lambda: torch.func.vmap(torch.func.grad(loss))(*qkv()),
}


@pytest.mark.parametrize("call", LEFT_TO_TORCH.values(), ids=LEFT_TO_TORCH.keys())
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_unsupported_calls_are_left_to_torch(call: Callable[[], Tensor]) -> None:
    expected = call()
    with replace_sdpa():
        assert not runs_ours(call)
        assert torch.equal(call(), expected)


CALLS_16BIT: dict[str, Callable[[], Tensor]] = {
    "bfloat16": lambda: torchs(*qkv(torch.bfloat16)),
    "float16": lambda: torchs(*qkv(torch.float16)),
    "bfloat16 with gradient": lambda: torchs(*qkv(torch.bfloat16, grad=True)),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16)(torchs)(*qkv()),
}


@pytest.mark.parametrize("call", CALLS_16BIT.values(), ids=CALLS_16BIT.keys())
def test_16_bit_dtypes_and_autocast(call: Callable[[], Tensor]) -> None:
    expected = call()
    with replace_sdpa():
        assert runs_ours(call)
        out = call()
    assert out.dtype == expected.dtype
    # Both results are rounded, and torch rounds the weights as well.
    torch.testing.assert_close(out, expected, rtol=0.02, atol=0.02)


def test_meta_tensors_give_the_shape() -> None:
    inputs = [x.to("meta") for x in qkv()]
    assert under_replacement(*inputs).shape == torchs(*inputs).shape
    assert under_replacement(*inputs).is_meta


def test_causal_bias_of_torch() -> None:
    for mask in (causal_lower_right(5, 7), causal_upper_left(5, 7)):
        expected = torchs(*qkv(), attn_mask=mask)
        with replace_sdpa():
            assert runs_ours(lambda mask=mask: torchs(*qkv(), attn_mask=mask))
            torch.testing.assert_close(torchs(*qkv(), attn_mask=mask), expected)


# --- torch.compile and torch.export

OPTIONS = {
    "plain": {},
    "causal": {"is_causal": True},
    "mask": {"attn_mask": torch.arange(7)[None] != 2},
    "scale": {"scale": 0.3},
    "groups": {"enable_gqa": True},
}
FUNCTIONS = {"drop-in": flash_attention.scaled_dot_product_attention, "replaced": torchs}


@pytest.mark.parametrize("dynamic", [None, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("name", FUNCTIONS)
def test_compiled_in_one_graph(name: str, options: dict[str, object], dynamic: bool | None) -> None:
    function = FUNCTIONS[name]
    inputs = qkv(torch.float64, grad=True)
    expected = torchs(*inputs, **options)
    truth = torch.autograd.grad(expected.square().sum(), inputs)
    with replace_sdpa():
        compiled = torch.compile(
            lambda *x: function(*x, **options), backend="aot_eager", fullgraph=True, dynamic=dynamic
        )
        torch.testing.assert_close(compiled(*inputs), expected)
        assert runs_ours(lambda: compiled(*inputs))
        grads = torch.autograd.grad(compiled(*inputs).square().sum(), inputs)
        torch.testing.assert_close(grads, truth)
        for queries in (3, 7, 11):
            query = torch.randn(2, 3, queries, 8, dtype=torch.float64)
            out = compiled(query, *inputs[1:])
            torch.testing.assert_close(out, function(query, *inputs[1:], **options))


def test_compiled_function_keeps_the_replacement() -> None:
    compiled = torch.compile(lambda *x: torchs(*x), backend="aot_eager")
    with replace_sdpa():
        compiled(*qkv())
    assert runs_ours(lambda: compiled(*qkv()))
    torch.compiler.reset()
    assert not runs_ours(lambda: compiled(*qkv()))


class Causal(torch.nn.Module):
    """Causal attention by the given function."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return self.function(query, key, value, is_causal=True)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_export_with_a_dynamic_length(name: str) -> None:
    """The drop-in exports as our operator; torch's function stays torch's and can be replaced."""
    length = torch.export.Dim("length", min=2, max=64)
    module = Causal(FUNCTIONS[name])
    with replace_sdpa():
        exported = torch.export.export(
            module, tuple(qkv()), dynamic_shapes={"query": {2: length}, "key": None, "value": None}
        )
        exported = exported.run_decompositions()
    if name == "drop-in":
        assert "flash.attention.default" in {str(n.target) for n in exported.graph.nodes}
    module = exported.module()
    for queries in (5, 7, 20):
        inputs = [torch.randn(2, 3, queries, 8), *qkv()[1:]]
        torch.testing.assert_close(module(*inputs), torchs(*inputs, is_causal=True))
        with replace_sdpa():
            assert runs_ours(lambda given=inputs: module(*given))


def test_operators_lists_nested_operators() -> None:
    assert "aten::scaled_dot_product_attention" in operators(lambda: torchs(*qkv()))
    call = Call(*qkv())
    assert runs_ours(lambda: flash_attention.scaled_dot_product_attention(**vars(call)))


@pytest.mark.parametrize(("device", "ours"), [("cuda", False), ("cpu", True)])
def test_tensors_of_another_device_are_left_to_torch(device: str, ours: bool) -> None:
    """With fake tensors, so no CUDA device is needed."""
    with FakeTensorMode():
        inputs = [torch.empty(1, 2, 3, 8, device=device) for _ in range(3)]
        assert runs_ours(lambda: flash_attention.scaled_dot_product_attention(*inputs)) == ours
        with replace_sdpa():
            assert runs_ours(lambda: F.scaled_dot_product_attention(*inputs)) == ours
            assert F.scaled_dot_product_attention(*inputs).device.type == device
