"""The functions of the package flash-attn 2, for CPU tensors.

Names, arguments, defaults, layouts and results are those of `flash_attn.flash_attn_interface` and
`flash_attn.bert_padding`, version 2.8; float32 and float64 work too. `install` serves them under
flash-attn's own names, to code that imports `flash_attn`.

In shapes, batch, seqlen, nheads and headdim are flash-attn's words for B, L, H and D.

Source: Dao, FlashAttention-2 (arXiv:2307.08691), and the documentation of
https://github.com/Dao-AILab/flash-attention.
"""

from flash_attention.flash_attn_interface.dense import (
    flash_attn_func,
    flash_attn_kvpacked_func,
    flash_attn_qkvpacked_func,
)
from flash_attention.flash_attn_interface.installation import install, uninstall
from flash_attention.flash_attn_interface.kvcache import flash_attn_with_kvcache
from flash_attention.flash_attn_interface.padding import (
    index_first_axis,
    index_put_first_axis,
    pad_input,
    unpad_input,
)
from flash_attention.flash_attn_interface.rotary import apply_rotary_emb
from flash_attention.flash_attn_interface.varlen import (
    flash_attn_varlen_func,
    flash_attn_varlen_kvpacked_func,
    flash_attn_varlen_qkvpacked_func,
)

__all__ = [
    "apply_rotary_emb",
    "flash_attn_func",
    "flash_attn_kvpacked_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_attn_with_kvcache",
    "index_first_axis",
    "index_put_first_axis",
    "install",
    "pad_input",
    "uninstall",
    "unpad_input",
]
