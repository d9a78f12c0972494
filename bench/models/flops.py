"""The floating-point operations of a training step, from torch's counter and what it misses.

`torch.utils.flop_counter` counts matrix products and convolutions, real ones. LSTM layers, Fourier
transforms and complex products are counted here. Not counted is what no product bounds:
element-wise operations, norms, softmax, sums, sorting, and the optimiser.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

aten = torch.ops.aten

# An operator with such a name multiplies matrices, convolves or transforms, and must be counted.
PRODUCTS = re.compile(
    r"mm|mv$|addr$|(^|_)v?dot|matmul|linear|einsum|conv|fft|rnn|lstm|gru|attention|cdist|bilinear"
)
# A complex multiply-add is four real ones.
COMPLEX = 4
# A Fourier transform of n complex values takes about 5 n log2(n) operations, of n real ones half as
# many (Cooley and Tukey, 1965; the customary figure of benchmarks of FFTs).
FFT_FACTOR = 5.0


def transform_flops(shape: Sequence[int], dims: Sequence[int], factor: float) -> int:
    """`factor` n log2(n) along `dims` of a tensor of this shape, n values per transform."""
    length = math.prod(shape[dim] for dim in dims)
    return round(factor * math.prod(shape) * math.log2(length)) if length > 1 else 0


def fft_c2c(shape: Any, dims: Any, *_: Any, **__: Any) -> int:
    """aten._fft_c2c(input, dim, ...)."""
    return transform_flops(shape, dims, FFT_FACTOR)


def fft_r2c(shape: Any, dims: Any, *_: Any, **__: Any) -> int:
    """aten._fft_r2c(input, dim, ...): the input is real."""
    return transform_flops(shape, dims, FFT_FACTOR / 2)


def fft_c2r(_: Any, dims: Any, *__: Any, out_shape: Any, **___: Any) -> int:
    """aten._fft_c2r(input, dim, ...): the output is real."""
    return transform_flops(out_shape, dims, FFT_FACTOR / 2)


def lstm(inputs: Any, input_weight: Any, hidden_weight: Any, *_: Any, **__: Any) -> int:
    """aten.mkldnn_rnn_layer(input [T, B, I], weight [4 H, I], weight [4 H, H], ...)."""
    steps, batch, _width = inputs
    return 2 * steps * batch * (math.prod(input_weight) + math.prod(hidden_weight))


def lstm_backward(*shapes: Any, **_: Any) -> int:
    """aten.mkldnn_rnn_layer_backward: gradients of the inputs, and of the weights."""
    return 2 * lstm(*shapes)


def with_complex(packet: Any) -> Callable[..., int]:
    """The formula of a product for tensors of any dtype."""
    real = flop_registry[packet]

    def formula(*args: Any, **kwargs: Any) -> int:
        tensors = [x for x in args if isinstance(x, Tensor)]
        factor = COMPLEX if any(x.is_complex() for x in tensors) else 1
        return factor * real(*args, **kwargs)

    formula._get_raw = True  # type: ignore[attr-defined]  # FlopCounterMode passes tensors then
    return formula


FORMULAS: dict[Any, Callable[..., int]] = {
    aten._fft_c2c: fft_c2c,
    aten._fft_r2c: fft_r2c,
    aten._fft_c2r: fft_c2r,
    aten.mkldnn_rnn_layer: lstm,
    aten.mkldnn_rnn_layer_backward: lstm_backward,
    **{packet: with_complex(packet) for packet in (aten.mm, aten.bmm, aten.addmm, aten.baddbmm)},
}


class Called(TorchDispatchMode):
    """Collects the operators that reach the kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.packets: set[Any] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.packets.add(func._overloadpacket)
        return func(*args, **(kwargs or {}))


def uncounted(packets: set[Any]) -> list[str]:
    """The names of those that PRODUCTS describes and that have no formula."""
    names = (packet.__name__ for packet in packets - FORMULAS.keys() - flop_registry.keys())
    return sorted(name for name in names if PRODUCTS.search(name))


def count(call: Callable[[], object]) -> int:
    """The operations of `call`, a multiply-add being two.

    Raises:
        RuntimeError: `call` runs a product, a transform or a recurrent layer without a formula.
    """
    with Called() as called, FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
        call()
    if missing := uncounted(called.packets):
        raise RuntimeError(
            f"bench/models/flops.py: expected a formula for every product, got {', '.join(missing)}"
            " without one; add it to FORMULAS"
        )
    return counter.get_total_flops()
