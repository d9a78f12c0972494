"""Attention on many processes, with `torch.distributed`.

`context_parallel_attention` computes one long sequence whose rows are divided among the processes
of a group; `shard_sequence` and `unshard_sequence` divide and join them. Importing this package
also lets DTensors whose batch or heads are sharded go through `torch.ops.flash.*`.
"""

# They register rules when they are imported.
from flash_attention.distributed import dtensor as _dtensor  # noqa: F401
from flash_attention.distributed import dtensor_packed as _dtensor_packed  # noqa: F401
from flash_attention.distributed.context_parallel import (
    context_parallel_attention,
    context_parallel_attention_with_lse,
)
from flash_attention.distributed.sequence import shard_sequence, unshard_sequence

__all__ = [
    "context_parallel_attention",
    "context_parallel_attention_with_lse",
    "shard_sequence",
    "unshard_sequence",
]
