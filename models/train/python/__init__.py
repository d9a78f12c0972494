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
    training goes on from the file of `--checkpoint`, if it has written one by then.

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


def _checkpoint_of(arguments: Sequence[str]) -> Path | None:
    """The file of `--checkpoint`, if the command line has one."""
    path = None
    for word, following in zip(arguments, [*arguments[1:], None], strict=True):
        option, _, value = word.partition("=")
        if option == "--checkpoint":
            path = value if "=" in word else following
    return Path(path) if path else None


def _state_of(file: Path) -> str:
    """What changes when a file is written."""
    try:
        found = file.stat()
    except OSError:
        return "no file"
    return f"{found.st_mtime_ns} {found.st_size}"


def _after_restart(arguments: list[str]) -> list[str]:
    """The command that continues the training, if torchrun has restarted it.

    A file of `--checkpoint` that was there before the training is not its own, so torchrun's store,
    which outlives the processes, remembers the state of that file at the beginning. The first
    process decides, since files of a network may look different to others.
    """
    import torch.distributed as dist

    checkpoint = _checkpoint_of(arguments)
    if not dist.is_available() or not dist.is_torchelastic_launched():
        return arguments
    if checkpoint is not None:
        from torch.distributed.rendezvous import rendezvous

        store, rank, _ = next(rendezvous("env://"))
        key = f"flash_train: {checkpoint}"
        decision = f"{key}, attempt {_restarts()}"
        if rank == 0:
            state = _state_of(checkpoint)
            # Set by the first attempt only.
            before = store.compare_set(f"{key}, at the beginning", "", state).decode()
            store.set(decision, "begin" if state in (before, "no file") else "resume")
        if store.get(decision) == b"resume":
            return ["resume", str(checkpoint)]
    if _restarts() > 0 and arguments[:1] != ["resume"] and os.environ.get("RANK") == "0":
        print(
            "flash_train: restarted from the beginning, because this training has written no file "
            "of --checkpoint",
            file=sys.stderr,
        )
    return arguments
