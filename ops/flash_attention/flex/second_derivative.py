"""Second derivatives of attention by blocks: gradients of the gradients, of some rows at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from flash_attention.flash_attn_interface.arguments import compute_dtype
from flash_attention.flex.block_mods import Gather, Indices
from flash_attention.flex.blocks import BlockCall, Gradients, product, weighted_sum
from flash_attention.flex.tiles import Part

__all__ = ["run_second_derivative"]


@torch.no_grad()
def run_second_derivative(
    call: BlockCall,
    cotangents: Sequence[Tensor | None],
    grad_out: Tensor,
    grad_lse: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    inputs: Sequence[Tensor],
) -> Gradients:
    """The gradients of grad_out, grad_lse, query, key, value and the inputs.

    cotangents: of the gradients of query, key, value and the inputs.
    """
    given = [x.detach() for x in (grad_out, grad_lse, query, key, value, *inputs)]
    flags = [True] * 5 + [x.requires_grad for x in call.inputs]
    totals: Gradients = [
        torch.zeros(x.shape, dtype=compute_dtype(x.dtype)) if flag else None
        for x, flag in zip(given, flags, strict=True)
    ]
    for part in call.tiles.parts(call.tiles.sizes.keys):
        _Rows(call, part, given).add_second(cotangents, totals)
    pairs = zip(totals, given, strict=True)
    return [None if total is None else total.to(x.dtype) for total, x in pairs]


class _Rows:
    """The rows of a part with all keys that they attend, as leaves of a graph of autograd."""

    def __init__(self, call: BlockCall, part: Part, given: Sequence[Tensor]) -> None:
        self.call, self.part = call, part
        self.rows = (part.batch, part.heads, part.queries)
        self.keys = torch.cat([torch.arange(first, end) for first, end, _ in part.ranges])
        self.indices: Indices = (*part.indices(), self.keys)
        grad_out, grad_lse, query, key, value, *inputs = given
        self.gradients = [
            x[self.rows].to(compute_dtype(x.dtype)).requires_grad_() for x in (grad_out, grad_lse)
        ]
        own_query, own_key, own_value = self.cut(query, key, value)
        raw = product(own_query * call.scale, own_key)
        self.places = call.places(raw, self.indices, inputs)
        self.gathered = [x.requires_grad_() for x in call.gathered(self.places, inputs)]
        self.main = [x.requires_grad_() for x in (own_query, own_key, own_value)]
        flags = [x.requires_grad for x in call.for_score(call.inputs)]
        pairs = zip(call.for_score(inputs), flags, strict=True)
        self.whole = [x.detach().requires_grad_(flag) for x, flag in pairs]
        masked = [torch.full((end - first,), flag) for first, end, flag in part.ranges]
        attends = call.attends(self.indices, inputs)
        self.hidden = None if attends is None else torch.cat(masked) & ~attends

    def cut(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """The rows and the keys of the part."""
        dtype, heads = compute_dtype(query.dtype), (self.part.batch, self.part.key_heads)
        others = [x[heads][:, :, self.keys].to(dtype) for x in (key, value)]
        return [query[self.rows].to(dtype), *others]

    def attend(self) -> tuple[Tensor, Tensor]:
        """out and log-sum-exp, by operations that autograd differentiates twice."""
        query, key, value = self.main
        raw = product(query * self.call.scale, key)
        scores = self.call.scores(raw, self.indices, self.whole, self.gathered)
        if self.hidden is not None:
            scores = scores.masked_fill(self.hidden, -math.inf)
        # softmax of a row without a key would have NaN gradients; such a row is constant.
        empty = scores.detach().amax(-1, keepdim=True) == -math.inf
        scores = scores.masked_fill(empty, 0.0)
        weights = torch.softmax(scores, -1).masked_fill(empty, 0.0)
        lse = scores.logsumexp(-1).masked_fill(empty.squeeze(-1), 0.0)
        return weighted_sum(weights, value), lse

    def add_second(self, cotangents: Sequence[Tensor | None], totals: Gradients) -> None:
        """Adds the second derivatives to `totals`."""
        leaves = [*self.main, *self.gathered, *self.whole]
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        pairs = zip(leaves, self._cotangents(cotangents), strict=True)
        used = [cotangent for leaf, cotangent in pairs if leaf.requires_grad]
        with torch.enable_grad():
            results = [
                (result, gradient)
                for result, gradient in zip(self.attend(), self.gradients, strict=True)
                if result.requires_grad
            ]
            firsts = torch.autograd.grad(
                [result for result, _ in results],
                wanted,
                [gradient for _, gradient in results],
                create_graph=True,
                allow_unused=True,
            )
        terms = [
            (first, cotangent.to(first.dtype))
            for first, cotangent in zip(firsts, used, strict=True)
            if first is not None and first.requires_grad and cotangent is not None
        ]
        if not terms:
            return
        variables = [*self.gradients, *wanted]
        seconds = torch.autograd.grad(
            [first for first, _ in terms],
            variables,
            [cotangent for _, cotangent in terms],
            allow_unused=True,
        )
        found = {id(leaf): second for leaf, second in zip(variables, seconds, strict=True)}
        self._add(totals, [found.get(id(leaf)) for leaf in (*self.gradients, *leaves)])

    def _cotangents(self, cotangents: Sequence[Tensor | None]) -> list[Tensor | None]:
        """One for each of main, gathered and whole."""
        query, key, value, *inputs = cotangents
        assert query is not None and key is not None and value is not None
        found: list[Tensor | None] = [*self.cut(query, key, value)]
        for gather, places in zip(self._gathers, self.places, strict=True):
            cotangent = inputs[gather.table]
            found.append(None if cotangent is None else gather.read(cotangent, places))
        return found + inputs[: len(self.whole)]

    @property
    def _gathers(self) -> list[Gather]:
        return [] if self.call.score is None else self.call.score.gathers

    def _add(self, totals: Gradients, seconds: Sequence[Tensor | None]) -> None:
        """Adds the derivatives by grad_out, grad_lse, query, key, value, gathered and whole."""
        heads = (self.part.batch, self.part.key_heads)
        for place, second in enumerate(seconds[:5]):
            total = totals[place]
            if total is None or second is None:
                continue
            if place < 3:
                total[self.rows] += second
            else:
                total[heads].index_add_(2, self.keys, second)
        end = 5 + len(self.gathered)
        pairs = zip(self._gathers, self.places, seconds[5:end], strict=True)
        for gather, places, second in pairs:
            total = totals[5 + gather.table]
            if total is not None and second is not None:
                gather.add(total, places, second)
        for total, second in zip(totals[5:], seconds[end:], strict=False):
            if total is not None and second is not None:
                total += second
