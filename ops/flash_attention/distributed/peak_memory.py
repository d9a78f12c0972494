"""The bytes of tensors that each process holds at the peak of a call.

All tensors count: the rows of query, key and value, the output and gradients, and what the methods
hold in between. What the kernels allocate beside them does not grow with the length.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flash_attention.distributed.schedule import even_lengths
from flash_attention.distributed.ulysses import head_groups
from flash_attention.distributed.workload import Exchange, Workload, exchanges

__all__ = ["all_gather", "ring", "ulysses"]


class _Rows:
    """Bytes of a row of each kind of tensor: in the dtype of the inputs, and as it is computed."""

    def __init__(self, work: Workload, heads: float = 1.0) -> None:
        """`heads`: the share of the heads."""
        batch = work.batch * heads
        self.query = batch * work.query_width * work.element
        self.keys = batch * work.key_value_width * work.element
        self.out = batch * work.out_width * work.element
        self.d_query = batch * work.query_width * work.computed
        self.d_keys = batch * work.key_value_width * work.computed
        self.out_computed = batch * work.out_width * work.computed
        self.stats = batch * 2 * work.heads[0] * work.computed
        self.is_rounded = work.computed != work.element

    @property
    def results(self) -> float:
        """The output twice if it is rounded, the statistics, and lse."""
        return self.out_computed + (self.out if self.is_rounded else 0.0) + 1.5 * self.stats

    @property
    def gradients(self) -> float:
        """Of query, key and value, twice while they are rounded."""
        rounded = self.query + self.keys if self.is_rounded else 0.0
        return self.d_query + self.d_keys + rounded


def _own_rows(work: Workload) -> Tensor:
    processes = range(work.layout.processes)
    return torch.tensor([work.layout.rows(p) for p in processes], dtype=torch.float64)


def _largest_block(work: Workload) -> Tensor:
    """Rows of the largest chunk of each process: what one call of the operator takes at most."""
    chunks = [max(chunk.length for chunk in chunks) for chunks in work.layout.chunks]
    return torch.tensor(chunks, dtype=torch.float64)


def ring(work: Workload, backward: bool) -> Tensor:
    """Float64 [W], for method="ring"."""
    row, own, block = _Rows(work), _own_rows(work), _largest_block(work)
    message = torch.zeros_like(own)
    for t, step in enumerate(exchanges(work)):
        if t > 0:
            message = torch.maximum(message, torch.maximum(step.rows, step.rows.roll(-t)))
    held = own * (row.query + row.keys + row.results)
    # The keys of this step, those of the next on their way, and those that leave for the next.
    travelling = 3 * message * row.keys
    if not backward:
        return held + travelling + block * row.out_computed
    held = held + own * (row.out + row.gradients)
    # Gradients of this step, and of the step before the ones that leave and the ones that arrive.
    travelling = travelling + 3 * message * row.d_keys
    return held + travelling + block * (row.d_query + row.d_keys)


class _Gathered:
    """Rows that "all_gather" collects and hands out, and the keys of the largest call."""

    def __init__(self, work: Workload) -> None:
        own = _own_rows(work)
        self.received, self.sent = torch.zeros_like(own), torch.zeros_like(own)
        for t, step in enumerate(exchanges(work)):
            if t > 0:
                self._add(step, t)
        self.keys = self.received + own

    def _add(self, step: Exchange, t: int) -> None:
        self.received = self.received + step.rows
        self.sent = self.sent + step.rows.roll(-t)


def all_gather(work: Workload, backward: bool) -> Tensor:
    """Float64 [W], for method="all_gather"."""
    row, own, block = _Rows(work), _own_rows(work), _largest_block(work)
    gathered = _Gathered(work)
    held = own * (row.query + row.keys + row.results)
    # What arrives, what leaves to each process, and afterwards one tensor of what has arrived.
    joined = torch.where(gathered.received > 0, gathered.keys, 0.0)
    travelling = (gathered.received + torch.maximum(gathered.sent, joined)) * row.keys
    if not backward:
        return held + travelling + own * row.out_computed
    held = held + own * (row.out + row.gradients)
    # The gradients of a call, where they are summed, and those that the others send at the end.
    in_call = gathered.keys * row.d_keys + block * row.d_query + joined * row.keys
    return (
        held
        + gathered.received * (row.keys + row.d_keys)
        + torch.maximum(in_call, gathered.sent * row.d_keys)
    )


def ulysses(work: Workload, backward: bool) -> Tensor:
    """Float64 [W], for method="ulysses"."""
    processes, length = work.layout.processes, work.layout.length
    groups = head_groups(*work.heads[1:])
    share = torch.tensor(even_lengths(groups, processes), dtype=torch.float64) / groups
    row, own, rows = _Rows(work), _own_rows(work), float(length) * share
    held = own * (row.query + row.keys + row.results)
    # All rows of some heads.
    inputs, results = row.query + row.keys, row.out_computed + row.stats
    if not backward:
        return held + rows * (inputs + results) + torch.maximum(rows, own) * 2 * inputs
    held = held + own * (row.out + row.query + row.keys)
    gradients = row.d_query + row.d_keys
    kept = rows * (inputs + results + row.out_computed + gradients)
    # Gradients leave and arrive in the dtype of the inputs.
    return held + kept + 2 * torch.maximum(rows, own) * inputs
