"""Schemas, registered dispatch keys, and tensor subclasses, parameters and negated views."""

from __future__ import annotations

import json

import flash_attention
import pytest
import torch

from support.checks import run
from support.problems import DTYPES, Spec, dtype_name, make_problem

ARGUMENTS = (
    "(Tensor query, Tensor key, Tensor value, *, Tensor? bias=None, bool causal=False, "
    "Tensor? query_positions=None, int[2]? window=None, Tensor? alibi_slopes=None, "
    "float softcap=0., Tensor? sinks=None, float? scale=None, float dropout=0., "
    "int block_size=64, bool use_simd=True)"
)

SCHEMAS = {
    "attention": f"flash::attention{ARGUMENTS} -> Tensor",
    "attention_with_lse": f"flash::attention_with_lse{ARGUMENTS} -> (Tensor out, Tensor lse)",
}


@pytest.mark.parametrize("op", SCHEMAS)
def test_schema(op: str) -> None:
    assert str(getattr(torch.ops.flash, op).default._schema) == SCHEMAS[op]


@pytest.mark.parametrize("key", ["CPU", "Meta", "Autograd", "AutocastCPU"])
@pytest.mark.parametrize("op", SCHEMAS)
def test_registered_dispatch_keys(op: str, key: str) -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"flash::{op}", key)


@pytest.mark.parametrize(
    "spec",
    [
        Spec(),
        Spec(rank=3),
        Spec(layout="transposed"),
        Spec(window=(5, 2), alibi="BH", softcap=2.0, sinks="H"),
    ],
    ids=["four-dimensional", "three-dimensional", "transposed", "window-alibi-softcap-sinks"],
)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_meta_gives_shape_dtype_and_strides(dtype: torch.dtype, spec: Spec) -> None:
    problem = make_problem(spec, dtype)
    real = flash_attention.attention_with_lse(**problem.inputs, **problem.options)
    meta = flash_attention.attention_with_lse(
        **{name: t.to("meta") for name, t in problem.inputs.items()}, **problem.options
    )
    for actual, expected in zip(meta, real, strict=True):
        assert actual.is_meta
        assert (actual.shape, actual.dtype, actual.stride()) == (
            expected.shape,
            expected.dtype,
            expected.stride(),
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_lazily_negated_views(dtype: torch.dtype) -> None:
    problem = make_problem(Spec(bias="LS", alibi="H", sinks="H"), dtype)
    expected = run(problem)
    for name, tensor in problem.inputs.items():
        problem.inputs[name] = torch._neg_view(-tensor)
        assert problem.inputs[name].is_neg()
    actual = run(problem)
    for name, tensor in expected.tensors().items():
        assert torch.equal(actual.tensors()[name], tensor), name


def test_parameters_and_subclasses() -> None:
    class Tagged(torch.Tensor):
        pass

    inputs = make_problem(Spec(), torch.float32).inputs
    expected = flash_attention.attention(**inputs)
    tagged = flash_attention.attention(**{n: t.as_subclass(Tagged) for n, t in inputs.items()})
    assert isinstance(tagged, Tagged) and torch.equal(tagged.as_subclass(torch.Tensor), expected)
    parameters = {n: torch.nn.Parameter(t) for n, t in inputs.items()}
    assert torch.equal(flash_attention.attention(**parameters), expected)


class Attended(torch.utils.data.Dataset):
    """Calls the operator in __getitem__, and so in a forked worker."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        x = torch.full((1, 50, 8), float(index)) + torch.arange(8.0)
        return flash_attention.attention(x, x, x)


def test_data_loader_workers() -> None:
    x = torch.randn(4, 4, 200, 16)
    flash_attention.attention(x, x, x)  # starts the parent's threads before the fork
    items = Attended()
    expected = torch.cat([items[index] for index in range(len(items))])
    loader = torch.utils.data.DataLoader(items, batch_size=None, num_workers=2, timeout=60)
    torch.testing.assert_close(torch.cat(list(loader)), expected)


def test_build_info() -> None:
    info = flash_attention.build_info()
    raw = json.loads(torch.ops.flash._build_info())
    assert raw["version"] == info.version == flash_attention.__version__
    assert torch.__version__.startswith(raw["torch"])
    names = [isa.name for isa in info.isa]
    assert {"scalar", "avx2"} <= set(names) and info.active in names
    assert all(isa.description for isa in info.isa)


OTHER_DEVICES = ["CUDA", "XPU", "MPS"]


def cpu_operators() -> list[str]:
    names = [n for n in torch._C._dispatch_get_all_op_names() if n.startswith("flash::")]
    return [n for n in names if torch._C._dispatch_has_kernel_for_dispatch_key(n, "CPU")]


@pytest.mark.once
@pytest.mark.parametrize("key", OTHER_DEVICES)
def test_every_cpu_operator_has_an_error_kernel_for_other_devices(key: str) -> None:
    operators = cpu_operators()
    assert "flash::attention" in operators and "flash::_varlen_backward" in operators
    for name in operators:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(name, key), name


@pytest.mark.once
@pytest.mark.parametrize("key", OTHER_DEVICES)
@pytest.mark.parametrize("op", SCHEMAS)
def test_other_device_error_suggests_moving_to_the_cpu(op: str, key: str) -> None:
    """Redispatches CPU tensors with the device's key, so that the test needs no such device."""
    device = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))
    inputs = [torch.zeros(1, 1, 2, 4) for _ in range(3)]
    with pytest.raises(NotImplementedError, match="expected tensors on the CPU") as raised:
        getattr(torch.ops.flash, op).default.redispatch(device, *inputs)
    assert str(raised.value).startswith(f"flash::{op}: ")
    assert "move them with .cpu()" in str(raised.value)
