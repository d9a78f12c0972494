"""The floor of a training step: operations, the peak around it, fused Adam, two threads."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bench.attention.peak import Probe
from bench.common import host, timing
from bench.models import flops, result, shapes, step_tables, step_time, targets, training_pair
from bench.models.result import Floor
from bench.models.shapes import Shape
from benchmarks.test_bench_models import Linear, whole_run
from benchmarks.test_bench_models import result as result_of

pytestmark = pytest.mark.once


def backward(out: Tensor) -> None:
    (out.abs() if out.is_complex() else out).sum().backward()


def test_product_and_its_gradients_are_two_operations_per_multiply_add() -> None:
    a, b = torch.randn(3, 5, requires_grad=True), torch.randn(5, 7, requires_grad=True)
    assert flops.count(lambda: a @ b) == 2 * 3 * 5 * 7
    assert flops.count(lambda: backward(a @ b)) == 3 * 2 * 3 * 5 * 7
    assert flops.count(lambda: a.exp().sum()) == 0


def test_complex_product_is_four_real_ones() -> None:
    a, b = (torch.randn(2, n, m, dtype=torch.complex64) for n, m in ((3, 5), (5, 7)))
    assert flops.count(lambda: torch.einsum("bij,bjk->bik", a, b)) == 4 * 2 * 2 * 3 * 5 * 7
    assert flops.count(lambda: a[0] @ b[0]) == 4 * 2 * 3 * 5 * 7


def test_lstm_is_counted_with_its_gradients() -> None:
    steps, batch, width, hidden = 10, 4, 8, 16
    layer = nn.LSTM(width, hidden, batch_first=True)
    inputs = torch.randn(batch, steps, width, requires_grad=True)
    forward = 2 * steps * batch * 4 * hidden * (width + hidden)
    assert flops.count(lambda: layer(inputs)) == forward
    assert flops.count(lambda: backward(layer(inputs)[0])) == 3 * forward


def test_fourier_transform_of_real_values_is_half_of_one_of_complex_values() -> None:
    values = torch.randn(3, 64, 2)
    whole = 5 * values.numel() * 6  # log2(64)
    assert flops.count(lambda: torch.fft.fft(values.to(torch.complex64), dim=1)) == whole
    assert flops.count(lambda: torch.fft.rfft(values, dim=1)) == whole // 2
    modes = torch.fft.rfft(values, dim=1)
    assert flops.count(lambda: torch.fft.irfft(modes, n=64, dim=1)) == whole // 2
    assert flops.count(lambda: torch.fft.rfft(torch.randn(3, 1), dim=1)) == 0


def test_product_without_a_formula_is_an_error() -> None:
    matrix, vector = torch.randn(3, 5), torch.randn(5)
    with pytest.raises(RuntimeError, match=r"got mv without one; add it to FORMULAS"):
        flops.count(lambda: torch.mv(matrix, vector))


def test_step_without_its_optimiser_is_counted() -> None:
    shape = Shape("PatchTST", 12, batch=2, horizon=5)
    step = training_pair.Step(Linear(shape), *training_pair.windows(shape))
    before = [p.detach().clone() for p in step.model.parameters()]
    # The past needs no gradient: forward, and the gradient of the weight.
    assert step_time.needed(step) == 2 * 2 * shape.batch * shape.length * shape.horizon
    assert all(map(torch.equal, before, step.model.parameters()))


class WithComplex(nn.Module):
    """One real and one complex parameter, as in FEDformer."""

    def __init__(self) -> None:
        super().__init__()
        self.real = nn.Parameter(torch.ones(3))
        self.complex = nn.Parameter(torch.ones(3, dtype=torch.complex64))


@pytest.mark.parametrize("fused", [False, True])
def test_adam_takes_real_and_complex_parameters(fused: bool) -> None:
    model = WithComplex()
    optimizer = training_pair.adam(model, fused, learning_rate=0.25)
    assert [group["fused"] for group in optimizer.param_groups] == [fused, False]
    (model.real.sum() + model.complex.abs().sum()).backward()
    optimizer.step()
    # The first step of Adam is the learning rate, whatever the gradient, but for its epsilon of
    # 1e-8 beside a gradient of 1.
    expected = torch.full((3,), 0.75)
    torch.testing.assert_close(model.real.detach(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(model.complex.detach().real, expected, rtol=1e-6, atol=0)


def times(**seconds: list[float]) -> step_time.Times:
    """Made-up times around a core with a peak of 100 GFLOP/s in the first round."""
    return step_time.Times(seconds, [1e-2, 1e-2, 2e-2], Probe(lambda: None, 1e9))


def test_floor_is_paired_with_the_peak_of_its_round() -> None:
    # In the last round the core is at half its speed: the floor doubles, as our time does.
    found = times(ours=[0.2, 0.2, 0.4], fused=[0.15, 0.15, 0.3]).floor(10**10)
    assert found.seconds == pytest.approx(0.1)
    assert found.over == {"ours": pytest.approx((2, 2, 2)), "fused": pytest.approx((1.5,) * 3)}


def test_peak_is_measured_around_our_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    steps = {name: lambda name=name: order.append(name) for name in ("ours", "fused", "theirs")}
    monkeypatch.setattr(timing, "SHORTEST_SAMPLE_SECONDS", 0.0)
    monkeypatch.setattr(timing, "WARMED_SECONDS", 0.0)
    found = step_time.in_turns(steps, Probe(lambda: order.append("peak"), 1.0), rounds=3)
    assert order[-5:] == ["peak", "ours", "fused", "peak", "theirs"]
    assert found.rounds == 3
    assert found.seconds.keys() == {"ours", "fused", "theirs"}


def test_two_threads_are_timed_against_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def step() -> None:
        time.sleep(0.02 / torch.get_num_threads())

    pinned: list[int] = []
    monkeypatch.setattr(host, "CORES", [0, 1])
    monkeypatch.setattr(host, "pin", pinned.append)
    threads = torch.get_num_threads()
    try:
        low, median, high = step_time.two_threads(step, rounds=3)
    finally:
        torch.set_num_threads(threads)
    # Sleeping takes longer than asked for by the latency of a busy machine.
    assert 1 < median < 3
    assert low <= median <= high
    assert pinned == [2, 1]


def test_two_threads_need_two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "CORES", [0])
    assert step_time.two_threads(lambda: None, rounds=3) is None


@dataclass
class Info:
    """What `build_info` says."""

    active: str


def test_peak_is_that_of_the_kernels_or_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(step_time.flash_attention, "build_info", lambda: Info("scalar"))
    with pytest.raises(SystemExit, match="got scalar; unset FLASH_ATTENTION_ISA"):
        step_time.core_peak(tmp_path)
    monkeypatch.setattr(step_time.flash_attention, "build_info", lambda: Info("avx2"))
    with pytest.raises(SystemExit, match="expected .*libflash_attention_peak.so, found none"):
        step_time.core_peak(tmp_path)


def with_floor(row: result.ModelResult, plain: float, fused: float) -> result.ModelResult:
    """The result with made-up distances from the floor."""
    over = {"ours": 3 * (plain,), "fused": 3 * (fused,)}
    times = row.seconds | {"fused": row.seconds["ours"] * fused / plain}
    return replace(row, seconds=times, fused=3 * (plain / fused,), floor=Floor(10**10, 1e11, over))


def test_row_keeps_floor_fused_adam_and_threads() -> None:
    plain = result_of(Shape("TFT", 96))
    measured = replace(with_floor(plain, 2.0, 1.6), threads=(1.6, 1.7, 1.8))
    for row in (plain, measured):
        assert result.from_row(json.loads(json.dumps(row.row()))) == row
    assert not {"floor", "fused", "threads"} & plain.row().keys()


@pytest.mark.parametrize(
    ("model", "over", "verdict"),
    [
        ("TFT", 1.8, "pass"),
        ("TFT", 1.801, "SHORTFALL"),
        ("iTransformer", 1.3, "pass"),
        ("iTransformer", 1.301, "SHORTFALL"),
    ],
)
def test_floor_is_judged_with_fused_adam(model: str, over: float, verdict: str) -> None:
    row = with_floor(result_of(Shape(model, 96)), 9.0, over)
    line = targets.floor_line(row)
    assert (line.figure, line.verdict) == (over, verdict)
    assert f"{over:.2f}x" in step_tables.floor_table([row], [line])


def test_floor_mean_counts_each_model_alike() -> None:
    rows = [
        with_floor(row, 2.0, 9.0 if row.shape.many_series else 1.49)
        for row in whole_run(faster=4.0)
    ]
    line = targets.floor_mean_line(rows)
    assert (line.figure, line.verdict, line.note) == (pytest.approx(1.49), "pass", "18 shapes")
    rows[0] = with_floor(rows[0], 2.0, 1.8)
    assert targets.floor_mean_line(rows).verdict == "SHORTFALL"
    rows[0] = replace(rows[0], floor=None)
    assert targets.floor_mean_line(rows).verdict == "not measured"


def test_mean_at_short_lengths_leaves_out_the_longest_and_many_series() -> None:
    def faster(shape: Shape) -> float:
        return 3.21 if shape.length in (96, 336) and not shape.many_series else 1.0

    rows = [result_of(shape, faster(shape)) for shape in shapes.plan()]
    line = targets.short_mean_line(rows)
    assert (line.figure, line.verdict) == (pytest.approx(3.21), "pass")
    assert "L 96 and 336" in line.what
    rows[0] = result_of(rows[0].shape, 3.0)
    assert targets.short_mean_line(rows).verdict == "SHORTFALL"


@pytest.mark.parametrize(
    ("threads", "verdict"), [(1.7, "pass"), (1.69, "SHORTFALL"), (None, "not measured")]
)
def test_two_threads_have_a_target(threads: float | None, verdict: str) -> None:
    measured = None if threads is None else 3 * (threads,)
    row = replace(result_of(Shape("TFT", 96)), threads=measured)
    assert targets.threads_line(row).verdict == verdict
    assert ("two threads" in step_tables.table([row])) == (threads is not None)


def test_hundreds_of_series_have_no_target_for_threads() -> None:
    what = [line.what for line in targets.lines(whole_run())]
    assert sum("two threads" in text for text in what) == 18
    assert sum("its floor" in text for text in what) == 21 + 1


def test_tables_of_a_record_without_floors_do_not_show_them() -> None:
    text = step_tables.table(whole_run())
    assert "floor, the operations" not in text
    assert "not measured" in text  # the summary counts the targets
    shown = step_tables.table([with_floor(row, 2.0, 1.4) for row in whole_run()])
    assert "plain / floor" in shown
    assert "Training step over its floor: geometric mean of 18 shapes: 1.400x" in shown
