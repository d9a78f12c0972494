"""torch's FlexAttention for CPU tensors, with a backward, which torch has on other devices only.

The names of `flex_attention` and of its arguments are torch's, and so are BlockMask and
`create_block_mask`, of `torch.nn.attention.flex_attention`.
"""

from flash_attention.flex.attention import flex_attention

__all__ = ["flex_attention"]
