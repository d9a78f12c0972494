"""Predicts time, memory and traffic of `context_parallel_attention` for any number of processes.

    python -m flash_attention.distributed.plan --length 1e9 --processes 1024 --causal

Nothing of that size is computed: every process's steps are put on a clock, by the model that
flash_attention/distributed/cost.py explains. The rates of a process are measured here, in a second,
unless --forward-rate and --backward-rate are given; those of its link are assumed unless given.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch

from flash_attention.distributed import probe
from flash_attention.distributed.cost import METHODS, Prediction, best, predict, refusal
from flash_attention.distributed.plan_options import BANDWIDTH, DTYPES, LATENCY, Options, parse
from flash_attention.distributed.schedule import Layout, contiguous, even_lengths, zigzag
from flash_attention.distributed.workload import Rates, Workload

__all__ = ["main", "report"]


Units = Sequence[tuple[str, float]]
TIMES: Units = (
    ("years", 365.25 * 86400.0),
    ("days", 86400.0),
    ("h", 3600.0),
    ("min", 60.0),
    ("s", 1.0),
    ("ms", 1e-3),
    ("µs", 1e-6),
)
BYTES: Units = tuple(
    (f"{prefix}B", 2.0**power)
    for prefix, power in (("Pi", 50), ("Ti", 40), ("Gi", 30), ("Mi", 20), ("Ki", 10), ("", 0))
)
PREFIXES: Units = (("T", 1e12), ("G", 1e9), ("M", 1e6))


def _scaled(value: float, units: Units) -> str:
    """In the largest unit of which there is one, with three digits."""
    if value == 0:
        return f"0 {units[-1][0]}"
    name, size = next((unit for unit in units if value >= unit[1]), units[-1])
    value /= size
    if value >= 1e6:
        return f"{value:.2e} {name}"
    return f"{value:,.0f} {name}" if value >= 99.95 else f"{value:#.3g} {name}"


def _seconds(value: float) -> str:
    return _scaled(value, TIMES)


def _bytes(value: float) -> str:
    return _scaled(value, BYTES)


def _rate(value: float, unit: str) -> str:
    return _scaled(value, [(prefix + unit, size) for prefix, size in PREFIXES])


def _layouts(options: Options) -> dict[str, Layout]:
    """By load_balance, as Python writes it."""
    found: dict[str, Layout] = {}
    length, processes = options.length, options.processes
    both = options.causal and processes > 1 and options.load_balance is None
    if options.load_balance == "none" or options.load_balance is None:
        found["None"] = contiguous(even_lengths(length, processes))
    if options.load_balance == "zigzag" or both:
        found['"zigzag"'] = zigzag(length, processes)
    return found


def _workload(options: Options, layout: Layout) -> Workload:
    return Workload(
        layout,
        options.reach,
        options.batch,
        (options.heads, options.key_heads, options.value_heads),
        (options.head_dim, options.value_dim),
        DTYPES[options.dtype],
    )


def _rates(options: Options) -> tuple[Rates, str]:
    """The rates, and a line that says where they are from."""
    forward, backward, call = options.forward_rate, options.backward_rate, options.call
    origin = "given"
    if forward is None or (backward is None and not options.forward_only):
        dtype = getattr(torch, options.dtype)
        measured = probe.measure(options.head_dim, options.value_dim, dtype, options.threads)
        threads = "1 thread" if options.threads == 1 else f"{options.threads} threads"
        origin = f"measured here, {threads}, unless given"
        forward = measured.forward if forward is None else forward
        backward = measured.backward if backward is None else backward
        call = measured.call if call is None else call
    # Without a backward its rate is not used.
    found = Rates(
        forward,
        forward if backward is None else backward,
        options.bandwidth,
        options.latency,
        call or 0.0,
    )
    computed = f"forward {_rate(found.forward, 'FLOP/s')}"
    if not options.forward_only:
        computed += f", backward {_rate(found.backward, 'FLOP/s')}"
    is_assumed = (options.bandwidth, options.latency) == (BANDWIDTH, LATENCY)
    return found, (
        f"A process: {computed}, {_seconds(found.call)} for each call ({origin}). "
        f"Its link: {_rate(found.bandwidth, 'B/s')}, {_seconds(found.latency)} "
        f"({'assumed' if is_assumed else 'given'})."
    )


def _described(options: Options) -> str:
    heads = f"{options.heads} heads"
    if (options.key_heads, options.value_heads) != (options.heads, options.heads):
        heads += f" ({options.key_heads} of keys, {options.value_heads} of values)"
    widths = f"{options.head_dim}"
    if options.value_dim != options.head_dim:
        widths += f" (values {options.value_dim})"
    mask = "causal" if options.causal else "no mask"
    if options.window is not None:
        window = f"window {options.window[0]}, {options.window[1]}"
        mask = f"causal, {window}" if options.causal else window
    passes = "forward" if options.forward_only else "forward and backward"
    rows = -(-options.length // options.processes)
    return (
        f"{options.length:,} positions on {options.processes:,} processes, up to {rows:,} each: "
        f"batch {options.batch}, {heads} of {widths}, {options.dtype}, {mask}; {passes}."
    )


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            text.rjust(width) if column > 1 else text.ljust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def report(options: Options) -> tuple[str, bool]:
    """The predictions as text, and whether any method fits."""
    rates, origin = _rates(options)
    backward = not options.forward_only
    found: dict[str, Prediction] = {}
    calls: dict[str, str] = {}
    rows = [["method", "load_balance", "time", "waiting", "memory", "sent", "sent by all"]]
    notes = []
    for balance, layout in _layouts(options).items():
        work = _workload(options, layout)
        for method in METHODS:
            if reason := refusal(method, work):
                notes.append(f'"{method}" {reason}.')
                continue
            one = predict(method, work, rates, backward)
            name = f"{method} {balance}"
            found[name] = one
            calls[name] = f'method="{method}", load_balance={balance}'
            rows.append(
                [
                    f'"{method}"',
                    balance,
                    _seconds(one.seconds),
                    f"{one.waiting:.1%}",
                    _bytes(one.memory),
                    _bytes(one.sent),
                    _bytes(one.sent_by_all),
                ]
            )
    alone = predict("ring", _workload(options, contiguous([options.length])), rates, backward)
    chosen = best(found, options.memory)
    if chosen is None:
        assert options.memory is not None
        verdict = f"None fits the {_bytes(options.memory)} of a process: take more processes."
    else:
        verdict = f"Best: {calls[chosen]}"
    lines = [
        _described(options),
        origin,
        "",
        _table(rows),
        "",
        "Time, memory and sent: of the process that has most of each. Waiting: the mean share "
        "of the time in which a process does not compute.",
        *dict.fromkeys(notes),
        f"One process: {_seconds(alone.seconds)}, {_bytes(alone.memory)}.",
        verdict,
    ]
    return "\n".join(lines), chosen is not None


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the predictions for a command line; None means that of the program.

    Returns:
        0, or 1 if no method fits the memory.

    Raises:
        SystemExit: an invalid option, with status 2.
    """
    text, fits = report(parse(arguments, __doc__))
    print(text)
    return 0 if fits else 1


if __name__ == "__main__":
    sys.exit(main())
