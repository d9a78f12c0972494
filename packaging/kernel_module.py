"""flash-attn's functions on the CPU, as Hugging Face's package `kernels` loads them from a folder.

`packaging/write_kernel.py` copies this file to the `__init__.py` of the folder, beside the package
`flash_attention` and its metadata.

A process has one `flash_attention`, since torch registers its operators once. That is the one which
is installed or imported already, if there is one, and otherwise the one in the folder.

Raises:
    ImportError: the one that is installed or imported already has another version.
"""

import importlib.metadata
import sys
from pathlib import Path

_FOLDER = str(Path(__file__).resolve().parent)
(_OWN,) = importlib.metadata.distributions(path=[_FOLDER])

if _FOLDER not in sys.path:
    sys.path.append(_FOLDER)  # last, so that an installed package is found first

import flash_attention  # noqa: E402

if flash_attention.__version__ != _OWN.version:
    raise ImportError(
        f"flash_attention: expected version {_OWN.version}, which this kernel has, or none, got "
        f"{flash_attention.__version__} from {flash_attention.__file__}; a process can load only "
        "one of them: uninstall it, or install the version of the kernel"
    )

from flash_attention.flash_attn_interface import (  # noqa: E402
    apply_rotary_emb,
    flash_attn_func,
    flash_attn_kvpacked_func,
    flash_attn_qkvpacked_func,
    flash_attn_varlen_func,
    flash_attn_varlen_kvpacked_func,
    flash_attn_varlen_qkvpacked_func,
    flash_attn_with_kvcache,
    index_first_axis,
    index_put_first_axis,
    pad_input,
    unpad_input,
)

__all__ = [
    "apply_rotary_emb",
    "flash_attention",
    "flash_attn_func",
    "flash_attn_kvpacked_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_attn_with_kvcache",
    "index_first_axis",
    "index_put_first_axis",
    "pad_input",
    "unpad_input",
]
