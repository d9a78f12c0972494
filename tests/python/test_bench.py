"""The measuring scripts: what they compute from measurements, and that they run from end to end."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import flash_attention
import pytest
import torch

BENCH = Path(__file__).resolve().parents[2] / "bench"
sys.path.insert(0, str(BENCH))
import comparison  # noqa: E402
import google_benchmark  # noqa: E402
import measure  # noqa: E402
import plot  # noqa: E402
import results  # noqa: E402
import tables  # noqa: E402

pytestmark = pytest.mark.once


def test_peak_memory_of_flash_is_what_attention_memory_says() -> None:
    query, key, value = measure.qkv((2, 3, 200, 16), torch.float32)
    peak = measure.peak_memory(lambda: flash_attention.attention(query, key, value))
    assert peak == flash_attention.attention_memory(2, 3, 200, 200, 16, 16).forward


def test_peak_memory_leaves_the_result_out_and_counts_what_was_freed() -> None:
    size = 4000

    def call() -> torch.Tensor:
        first = torch.zeros(size // 4)
        result = first + 1  # both alive: the peak
        del first
        return result

    assert measure.peak_memory(call) == pytest.approx(size, abs=16)  # and the number 1, a tensor


def test_textbook_attention_is_standard_attention() -> None:
    inputs = measure.qkv((1, 2, 40, 8), torch.float64)
    mask = measure.causal_mask(40, torch.float64)
    expected = flash_attention.standard_attention(*inputs, causal=True)
    torch.testing.assert_close(measure.textbook(*inputs, mask), expected)


def test_interleaved_takes_turns() -> None:
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in ("a", "b")}
    times = measure.interleaved(calls, rounds=4)
    assert {name: len(samples) for name, samples in times.items()} == {"a": 4, "b": 4}
    timed = "".join(order).lstrip("a").lstrip("b")  # behind the two warm-ups of each
    changes = sum(x != y for x, y in zip(timed, timed[1:], strict=False))
    assert changes == 2 * 4 - 1


def test_interleaved_warms_a_short_call_before_its_sample() -> None:
    order: list[str] = []

    def long() -> None:
        order.append("a")
        time.sleep(2 * measure.WARMED_SECONDS)

    measure.interleaved({"a": long, "b": lambda: order.append("b") or time.sleep(1e-3)}, rounds=2)
    assert "".join(order) == "aabb" + 2 * "abb"


def test_ratio_is_taken_within_each_round() -> None:
    assert measure.median_ratio([2.0, 40.0, 6.0], [1.0, 10.0, 2.0]) == 3.0


@pytest.mark.parametrize("isa", ["avx2", "avx512"])
def test_environment_holds_everybody_to_the_instruction_set(isa: str) -> None:
    found = measure.environment(isa)
    for name in ("ATEN_CPU_CAPABILITY", "FLASH_ATTENTION_ISA"):
        assert found[name] == isa
    for name in ("MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA"):
        assert found[name].startswith(isa.upper())


def test_comparison_sees_the_difference_of_the_dtypes() -> None:
    found = comparison.difference(64)
    assert found.float64 < 1e-10 < found.float32 < 1e-4
    assert found.float64_gradients < 1e-10


@pytest.mark.parametrize(
    ("count", "text"),
    [(12, "12 B"), (1536, "1.5 KiB"), (3 << 20, "3.0 MiB"), (1 << 30, "1.00 GiB")],
)
def test_bytes_are_written_in_binary_units(count: int, text: str) -> None:
    assert measure.bytes_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(2.5, "2.5 s"), (0.0123, "12.3 ms"), (0.25, "250 ms"), (4e-5, "40 µs")]
)
def test_seconds_are_written_in_fitting_units(seconds: float, text: str) -> None:
    assert measure.seconds_text(seconds) == text


def test_table_is_markdown_with_aligned_columns() -> None:
    text = measure.table(["what", "n"], [["long text", "1"], ["x", "100"]])
    assert text.splitlines() == [
        "| what      |   n |",
        "|-----------|----:|",
        "| long text |   1 |",
        "| x         | 100 |",
    ]


def test_tables_are_put_between_their_comments() -> None:
    end = "<!-- end of table -->\n"
    page = f"a\n<!-- table: x -->\nold\n{end}b\n<!-- table: y -->\n{end}"
    renewed = tables.replace(page, "x", "new")
    assert renewed == page.replace("old", "new")
    assert "two" in tables.replace(renewed, "y", "two")
    assert tables.replace(page, "z", "nothing") == page


def google_benchmark_output() -> dict:
    """As Google Benchmark writes it, for two lengths and two head sizes."""
    cells = [(64, 64), (1024, 64), (1024, 16)]
    return {
        "context": {
            "date": "2026-01-02T03:04:05+00:00",
            "threads": "1",
            "heads": "8",
            "torch_cpu_capability": "AVX2",
            "flash_build_info": json.dumps({"active": "avx2"}),
        },
        "benchmarks": [
            {
                "name": f"{direction}/{method}/{dtype}/{mask}/L:{length}/D:{size}/real_time",
                "real_time": length * size * 1e-3,
                "FLOP/s": 1e9 * size,
            }
            for direction in plot.DIRECTIONS
            for method in plot.STYLES
            for dtype in ("f32", "f64")
            for mask in ("full", "causal")
            for length, size in cells
        ],
    }


def test_record_keeps_every_benchmark_and_its_unit(tmp_path: Path) -> None:
    record = google_benchmark.shorten(google_benchmark_output())
    head = {name: value for name, value in record.items() if name != "results"}
    results.write_rows(head, {"results": record["results"]}, tmp_path / "record.json")
    assert json.loads((tmp_path / "record.json").read_text()) == record
    assert len(record["results"]) == 3 * 3 * 2 * 2 * 3
    assert record["results"][0] == {
        "direction": "Forward",
        "method": "flash",
        "dtype": "f32",
        "mask": "full",
        "length": 64,
        "head_size": 64,
        "seconds": 0.004096,
        "flops_per_second": 64e9,
    }
    assert record["machine"]["date"] == "2026-01-02"


def test_pictures_are_drawn_from_a_record(tmp_path: Path) -> None:
    pictures = plot.draw(google_benchmark.shorten(google_benchmark_output()), tmp_path)
    assert [p.name for p in pictures] == ["time_f32.png", "time_f64.png", "rate_by_head_size.png"]
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in pictures)
