"""The benchmark of context parallelism: its inputs, its reference in float64, and its tables."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import flash_attention
import pytest
import torch
import torch.distributed as dist
from flash_attention.distributed.schedule import Span

from bench.distributed import reference, result, run, source, worker
from bench.distributed.points import Point
from bench.distributed.result import Result
from support.process_pool import ProcessPool
from support.tolerances import FLOAT64_ABSOLUTE, MODEL_FLOAT32_AT_LEAST

pytestmark = pytest.mark.once

POINTS = {
    "full": Point(700, 2, head_dim=16),
    "causal": Point(700, 2, causal=True, head_dim=16),
    "window": Point(700, 2, window=64, head_dim=16),
}


def test_rows_do_not_depend_on_how_they_are_cut() -> None:
    point = Point(9000, 1, heads=1, head_dim=2)
    whole = source.rows("key", point, Span(0, 9000))
    assert whole.shape == (1, 1, 9000, 2)
    for span in (Span(4000, 4200), Span(4096, 8192), Span(8999, 9000), Span(5, 5)):
        assert torch.equal(source.rows("key", point, span), whole[:, :, span.begin : span.end])
    assert not torch.equal(source.rows("query", point, Span(0, 9000)), whole)
    # Standard normal, in every block.
    assert float(whole[:, :, 4096:].std()) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("name", POINTS)
def test_the_reference_is_attention_in_float64(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(reference, "AT_ONCE", 100)
    point = POINTS[name]
    whole = Span(0, point.length)
    *inputs, grad_out = (source.rows(n, point, whole).double() for n in source.NAMES)
    leaves = [x.requires_grad_() for x in inputs]
    out, lse = flash_attention.attention_with_lse(*leaves, causal=point.causal, window=point.sides)
    out.backward(grad_out)
    delta = (grad_out * out.detach()).sum(-1)
    positions = reference.samples(point)
    assert positions[0] == 0 and positions[-1] == point.length - 1
    for position in positions[:: len(positions) // 4]:
        row = reference.Row(point, position)
        d_key, d_value = reference.column(point, position, lse.detach(), delta)
        for actual, expected in (
            (row.out, out),
            (row.d_query(), leaves[0].grad),
            (d_key, leaves[1].grad),
            (d_value, leaves[2].grad),
        ):
            torch.testing.assert_close(
                actual, expected[:, :, position], rtol=1e-12, atol=FLOAT64_ABSOLUTE
            )


def measured(point: Point) -> tuple[int, worker.Times, dict[str, list[worker.Error]]]:
    return worker.once(point, dist.get_rank())


@pytest.mark.parametrize("name", POINTS)
def test_the_error_of_two_processes_is_that_of_float32(
    two_processes: ProcessPool, name: str
) -> None:
    found = two_processes.run(measured, POINTS[name])
    errors = run.relative([errors for _, _, errors in found])
    assert list(errors) == list(worker.TENSORS)
    # Sums of float32 rounded a few hundred times, relative to the row.
    assert 0 < max(errors.values()) < MODEL_FLOAT32_AT_LEAST
    assert all(memory > 0 and times.total > 0 for memory, times, _ in found)


def test_a_wrong_row_is_an_error() -> None:
    point = replace(POINTS["causal"], processes=1)
    held = worker._Held.of(point, 0)
    _, out, lse = held.step()
    out[:, :, point.length - 1] += 0.5
    held.leaves[1].grad[:, :, 0] = math.nan
    errors = run.relative([worker._errors(held, out, lse, 0)])
    assert errors["out"] > 0.05
    assert math.isnan(errors["d_key"])
    assert errors["d_value"] < MODEL_FLOAT32_AT_LEAST


def test_link_and_rates(two_processes: ProcessPool) -> None:
    for link in two_processes.run(worker.link):
        assert link.bandwidth > 1e6 and 0 < link.latency < 1.0


def made(ratio: float | None, processes: int = 2) -> Result:
    return Result(
        point=Point(8192, processes, causal=True),
        cores=2,
        seconds=(0.1, 0.2),
        spread=(0.29, 0.3, 0.31),
        memory=3 << 20,
        error=dict.fromkeys(worker.TENSORS, 1e-7),
        predicted=(0.28, 2.5 * 2**20),
        alone=(0.27, 4 << 20, 0.26),
        ratio=None if ratio is None else (ratio - 0.01, ratio, ratio + 0.01),
    )


def test_the_verdict_is_for_processes_with_a_core_each() -> None:
    assert made(1.05).verdict == "pass"
    assert made(1.15).verdict == "SHORTFALL"
    assert made(2.5, processes=4).verdict == made(None).verdict == "-"


def test_tables_have_the_measurement_beside_one_process_and_the_model() -> None:
    results = [made(1.05), made(None, processes=4)]
    assert (
        "causal, 2 processes: 300 ms, 1.050x of one process; predicted 280 ms" in results[0].line()
    )
    times = result.times(results).splitlines()
    assert all(text in times[2] for text in ("1.050x", "280 ms", "270 ms", "260 ms"))
    sizes = result.memory_and_errors(results)
    assert "3.0 MiB" in sizes and "2.5 MiB" in sizes and "0.75x" in sizes
    row = json.loads(json.dumps(results[0].row()))
    assert row["ratio"] == [1.04, 1.05, 1.06] and row["point"]["processes"] == 2


@pytest.mark.parametrize("options", [["--length", "0"], ["--processes", "1"], ["--rounds", "many"]])
def test_invalid_options_are_refused(
    capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    with pytest.raises(SystemExit):
        run.parser().parse_args(options)
    assert "expected a whole number of at least" in capsys.readouterr().err
