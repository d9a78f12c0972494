"""flash_train, which trains forecasters on tables, as `python -m flash_attention.train`."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run flash_train in this process, and return its exit status.

    It makes torch flush denormal numbers, and sets its number of threads to `--threads`.

    If torchrun started several processes, or torch.distributed is initialised, the processes of the
    default group train together, and all of them must call this: each computes a share of every
    batch, and the first one reports and writes files. When torchrun has restarted them, the
    training goes on from the file of `--checkpoint`, if there is one by then.

    Args:
        arguments: the command line without the program's name; None for `sys.argv[1:]`.

    Raises:
        ImportError: there is no library for this torch.
    """
    import flash_attention.models  # noqa: F401  loads the libraries that the program links
    from flash_attention import _library

    library = ctypes.CDLL(str(_library.path_of("libflash_train.so")))
    given = _after_restart(list(sys.argv[1:] if arguments is None else arguments))
    words = [b"flash_train", *(os.fsencode(word) for word in given)]
    array = (ctypes.c_char_p * (len(words) + 1))(*words, None)
    sys.stdout.flush()
    sys.stderr.flush()
    with _group() as group:
        if group is None:
            return library.flash_train_main(len(words), array)
        return library.flash_train_main_of_group(len(words), array, group.encode())


@contextmanager
def _group() -> Iterator[str | None]:
    """The name of the group of processes that train together; None if this one is alone."""
    import torch.distributed as dist

    if not dist.is_available():  # then the program refuses what torchrun starts
        yield None
        return
    launched = dist.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) > 1
    begun = launched and not dist.is_initialized()
    if begun:
        from torch.distributed.distributed_c10d import PrefixStore
        from torch.distributed.rendezvous import rendezvous

        store, rank, size = next(rendezvous("env://"))
        # Restarts have one store, where Gloo would find the addresses of processes that have ended.
        attempt = PrefixStore(f"attempt {_restarts()}", store)
        dist.init_process_group("gloo", store=attempt, rank=rank, world_size=size)
    world = dist.group.WORLD
    yield world.group_name if world is not None and world.size() > 1 else None
    if begun:
        dist.destroy_process_group()


def _restarts() -> int:
    """How often torchrun has restarted the processes."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _after_restart(arguments: list[str]) -> list[str]:
    """The command that continues the training, if torchrun has restarted it."""
    if _restarts() == 0:
        return arguments
    flag = "--checkpoint"
    paths = [word.partition("=")[2] for word in arguments if word.startswith(flag + "=")]
    paths += [path for word, path in zip(arguments, arguments[1:], strict=False) if word == flag]
    if paths and Path(paths[-1]).is_file():
        return ["resume", paths[-1]]
    if os.environ.get("RANK") == "0":
        print(
            f"flash_train: restarted from the beginning, because there is no file of {flag}",
            file=sys.stderr,
        )
    return arguments
