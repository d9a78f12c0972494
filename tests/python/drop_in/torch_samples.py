"""torch's own sample inputs for `scaled_dot_product_attention`."""

from __future__ import annotations

import torch
from torch.testing._internal.common_methods_invocations import op_db

from support.sdpa_calls import Call

[OP_INFO] = [op for op in op_db if op.name == "nn.functional.scaled_dot_product_attention"]


def samples(dtype: torch.dtype, grad: bool = True) -> list[Call]:
    """torch's sample inputs for scaled_dot_product_attention."""
    found = OP_INFO.sample_inputs("cpu", dtype, requires_grad=grad)
    return [Call(sample.input, *sample.args, **sample.kwargs) for sample in found]
