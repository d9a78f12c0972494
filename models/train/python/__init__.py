"""flash_train, which trains forecasters on tables, as `python -m flash_attention.train`."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run flash_train in this process, and return its exit status.

    It makes torch flush denormal numbers, and sets its number of threads to `--threads`.

    Args:
        arguments: the command line without the program's name; None for `sys.argv[1:]`.

    Raises:
        ImportError: there is no library for this torch.
    """
    import flash_attention.models  # noqa: F401  loads the libraries that the program links
    from flash_attention import _library

    program = ctypes.CDLL(str(_library.path_of("libflash_train.so"))).flash_train_main
    given = sys.argv[1:] if arguments is None else arguments
    words = [b"flash_train", *(os.fsencode(word) for word in given)]
    sys.stdout.flush()
    sys.stderr.flush()
    return program(len(words), (ctypes.c_char_p * (len(words) + 1))(*words, None))
