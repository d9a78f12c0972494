"""Attention of the models of the package transformers, on the CPU.

    model = AutoModel.from_config(config, attn_implementation=register())

transformers is imported by `register`, and not before. Written for its version 5.24.
"""

from flash_attention.transformers.registration import NAME, register

__all__ = ["NAME", "register"]
