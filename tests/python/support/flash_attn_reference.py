"""flash-attn's functions from their definition, one sequence at a time, in float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    kept: Tensor | None = None,
    dropout_p: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """out [queries, heads, width] and softmax_lse [heads, queries] of one sequence.

    q [queries, heads, headdim], k and v [keys, key_heads, ..]; `alibi_slopes` [heads]; `kept` bool
    [heads, queries, keys], the weights that dropout keeps.
    """
    queries, heads, head_dim = q.shape
    keys = k.size(0)
    q, k, v = (x.double().transpose(0, 1) for x in (q, k, v))
    k, v = (x.repeat_interleave(heads // x.size(0), 0) for x in (k, v))
    scores = (q @ k.mT) * (1 / math.sqrt(head_dim) if softmax_scale is None else softmax_scale)
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    # Key index minus the index of the key that is aligned with the query.
    ahead = torch.arange(keys) - (torch.arange(queries).unsqueeze(1) + keys - queries)
    if alibi_slopes is not None:
        scores = scores - alibi_slopes.double().view(-1, 1, 1) * ahead.abs()
    left, right = window_size
    hidden = torch.zeros(queries, keys, dtype=torch.bool)
    if causal:
        hidden |= ahead > 0
    if left >= 0:
        hidden |= ahead < -left
    if right >= 0:
        hidden |= ahead > right
    scores = scores.masked_fill(hidden, -math.inf)
    lse = scores.logsumexp(-1)
    weights = torch.exp(scores - lse.masked_fill(lse == -math.inf, 0.0).unsqueeze(-1))
    if kept is not None:
        weights = weights * kept / (1 - dropout_p)
    return (weights @ v).transpose(0, 1), lse.masked_fill(lse == -math.inf, math.inf)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, interleaved: bool) -> Tensor:
    """x [rows, heads, headdim] as float64, its pairs of elements turned as complex numbers."""
    turn = torch.complex(cos.double(), sin.double())[positions].unsqueeze(1)
    pairs = turn.size(-1)
    x = x.double().clone()
    one = slice(0, 2 * pairs, 2) if interleaved else slice(0, pairs)
    other = slice(1, 2 * pairs, 2) if interleaved else slice(pairs, 2 * pairs)
    turned = torch.complex(x[..., one], x[..., other]) * turn
    x[..., one], x[..., other] = turned.real, turned.imag
    return x
