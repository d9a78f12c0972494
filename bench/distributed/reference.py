"""The error of some rows: output and gradients of attention from its definition, in float64.

The output and the gradient of a query take one row of scores. The gradients of a key and a value
take a column, with the log-sum-exp of each row of the call and the sums of its gradient times its
output: the rows' own errors, which are checked too, are in them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from flash_attention.distributed.schedule import Span
from torch import Tensor

from bench.distributed import source
from bench.distributed.points import Point

# Positions that are compared in all.
SAMPLES = 16
# Rows that are converted to float64 at a time.
AT_ONCE = 16384


def samples(point: Point) -> list[int]:
    """Positions: the first, the last, and random ones."""
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randint(point.length, (SAMPLES - 2,), generator=generator).tolist()
    return sorted({0, point.length - 1, *drawn})


def _parts(point: Point, within: Span) -> Iterator[Span]:
    for begin in range(within.begin, within.end, AT_ONCE):
        yield Span(begin, min(begin + AT_ONCE, within.end))


def _exact(name: str, point: Point, span: Span) -> Tensor:
    return source.rows(name, point, span).double()


class Row:
    """The row of one query: [B, H, D] each."""

    def __init__(self, point: Point, position: int) -> None:
        self.scale = 1 / math.sqrt(point.head_dim)
        self._point = point
        own = Span(position, position + 1)
        whole = Span(0, point.length)
        self._keys = point.reach.keys(own, whole)
        self.query = _exact("query", point, own)[:, :, 0]
        self.grad_out = _exact("grad_out", point, own)[:, :, 0]
        lse, out = None, torch.zeros_like(self.query)
        for scores, _, value in self._blocks():
            part = scores.logsumexp(-1)
            new = part if lse is None else torch.logaddexp(lse, part)
            kept = torch.zeros_like(part) if lse is None else (lse - new).exp()
            weights = (scores - new.unsqueeze(-1)).exp()
            out = out * kept.unsqueeze(-1) + torch.einsum("bhn,bhnd->bhd", weights, value)
            lse = new
        assert lse is not None  # a query attends its own key
        self.out, self.lse = out, lse

    def _blocks(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Scores [B, H, n], keys and values of the keys that the query attends."""
        for span in _parts(self._point, self._keys):
            key, value = (_exact(name, self._point, span) for name in ("key", "value"))
            yield torch.einsum("bhd,bhnd->bhn", self.query * self.scale, key), key, value

    def d_query(self) -> Tensor:
        delta = (self.grad_out * self.out).sum(-1, keepdim=True)
        total = torch.zeros_like(self.query)
        for scores, key, value in self._blocks():
            weights = (scores - self.lse.unsqueeze(-1)).exp()
            change = torch.einsum("bhd,bhnd->bhn", self.grad_out, value) - delta
            total += torch.einsum("bhn,bhnd->bhd", weights * change, key)
        return total * self.scale


def column(point: Point, position: int, lse: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of a key and a value, [B, H, D] each.

    Args:
        lse: [B, H, L] of the call.
        delta: [B, H, L], the sum of the gradient of the output times the output, of each row.
    """
    scale = 1 / math.sqrt(point.head_dim)
    own = Span(position, position + 1)
    key, value = (_exact(name, point, own)[:, :, 0] for name in ("key", "value"))
    # The queries that attend a key: the reach in the opposite direction.
    left, right = point.reach.left, point.reach.right
    begin = 0 if right is None else max(0, position - right)
    end = point.length if left is None else min(point.length, position + left + 1)
    d_key, d_value = torch.zeros_like(key), torch.zeros_like(value)
    for span in _parts(point, Span(begin, end)):
        query, grad_out = (_exact(name, point, span) for name in ("query", "grad_out"))
        rows = slice(span.begin, span.end)
        scores = torch.einsum("bhnd,bhd->bhn", query, key) * scale
        weights = (scores - lse[:, :, rows].double()).exp()
        change = torch.einsum("bhnd,bhd->bhn", grad_out, value) - delta[:, :, rows].double()
        d_value += torch.einsum("bhn,bhnd->bhd", weights, grad_out)
        d_key += torch.einsum("bhn,bhnd->bhd", weights * change, query)
    return d_key * scale, d_value
