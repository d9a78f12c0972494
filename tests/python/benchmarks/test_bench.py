"""The parts of `bench` that all measurements share: timing, memory, formatting, provenance."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import flash_attention
import pytest
import torch

import packaging
from bench import tables
from bench.attention import comparison, google_benchmark, google_pictures, workload
from bench.common import allocations, formatting, host, timing
from bench.report import plot, records

pytestmark = pytest.mark.once

BENCH = host.ROOT / "bench"


def test_peak_memory_of_flash_equals_attention_memory() -> None:
    query, key, value = workload.qkv((2, 3, 200, 16), torch.float32)
    peak = allocations.peak_memory(lambda: flash_attention.attention(query, key, value))
    assert peak == flash_attention.attention_memory(2, 3, 200, 200, 16, 16).forward


def test_peak_memory_excludes_the_result_and_includes_freed_blocks() -> None:
    size = 4000

    def call() -> torch.Tensor:
        first = torch.zeros(size // 4)
        result = first + 1  # both alive: the peak
        del first
        return result

    # Another 4 bytes hold the number 1 as a tensor.
    assert allocations.peak_memory(call) == pytest.approx(size, abs=16)


def test_textbook_matches_standard_attention() -> None:
    inputs = workload.qkv((1, 2, 40, 8), torch.float64)
    mask = workload.causal_mask(40, torch.float64)
    expected = flash_attention.standard_attention(*inputs, causal=True)
    torch.testing.assert_close(workload.textbook(*inputs, mask), expected)


def test_interleaved_alternates_between_candidates() -> None:
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in ("a", "b")}
    times = timing.interleaved(calls, rounds=4)
    assert {name: len(samples) for name, samples in times.items()} == {"a": 4, "b": 4}
    timed = "".join(order).lstrip("a").lstrip("b")  # without the two warm-up calls of each
    changes = sum(x != y for x, y in zip(timed, timed[1:], strict=False))
    assert changes == 2 * 4 - 1


@pytest.mark.serial
def test_interleaved_warms_up_a_short_call_before_each_sample() -> None:
    order: list[str] = []

    def long() -> None:
        order.append("a")
        time.sleep(2 * timing.WARMED_SECONDS)

    short = timing.WARM_UP_SECONDS / 2
    timing.interleaved({"a": long, "b": lambda: order.append("b") or time.sleep(short)}, rounds=2)
    assert "".join(order) == "aabb" + 2 * "abbb"  # two calls that warm up, and the sample


def test_ratio_is_paired_by_round() -> None:
    assert timing.median_ratio([2.0, 40.0, 6.0], [1.0, 10.0, 2.0]) == 3.0


@pytest.mark.parametrize("isa", ["avx2", "avx512"])
def test_environment_restricts_all_libraries_to_the_instruction_set(isa: str) -> None:
    found = host.environment(isa)
    for name in ("ATEN_CPU_CAPABILITY", "FLASH_ATTENTION_ISA"):
        assert found[name] == isa
    for name in ("MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA"):
        assert found[name].startswith(isa.upper())


def commit_all(folder: Path, message: str) -> None:
    options = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    for words in (("add", "-A"), (*options, "commit", "--quiet", "-m", message)):
        subprocess.run(["git", "-C", str(folder), *words], check=True)


def test_commit_is_the_last_one_that_changed_the_measured_sources(tmp_path: Path) -> None:
    assert host.commit(tmp_path) is None
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    (tmp_path / "csrc").mkdir()
    source, page = tmp_path / "csrc" / "kernel.cpp", tmp_path / "README.md"
    source.write_text("1")
    commit_all(tmp_path, "kernel")
    found = host.commit(tmp_path)
    assert re.fullmatch("[0-9a-f]{7,}", found)
    page.write_text("1")
    commit_all(tmp_path, "page")
    assert host.commit(tmp_path) == found
    source.write_text("2")
    assert host.commit(tmp_path) == f"{found}+changes"
    commit_all(tmp_path, "faster")
    assert host.commit(tmp_path) not in (found, f"{found}+changes")


def test_description_names_cpu_commit_and_date() -> None:
    machine = host.machine()
    text = host.describe(machine | {"commit": "abcdef0"})
    assert text.startswith(machine["cpu"])
    assert text.endswith(f", commit abcdef0, {machine['date']}")
    assert ", commit unknown, " in host.describe(machine | {"commit": None})


def scripts() -> list[Path]:
    """The files of `bench` that can be run as `python PATH`."""
    return [p for p in sorted(BENCH.rglob("*.py")) if '__name__ == "__main__"' in p.read_text()]


def test_scripts_find_the_package_bench() -> None:
    for script in scripts():
        text = script.read_text()
        depth = len(script.relative_to(BENCH).parts)
        insertion = f"sys.path.insert(0, str(Path(__file__).resolve().parents[{depth}]))\n"
        assert insertion in text, script
        assert "\nfrom bench" not in text[: text.index(insertion)], script
    assert len(scripts()) >= 3


def test_no_file_of_bench_shadows_an_installed_module() -> None:
    # The folder of a script is the first entry of sys.path, so its files could shadow modules.
    installed = set(importlib.metadata.packages_distributions()) | sys.stdlib_module_names
    folders = {script.parent for script in scripts()}
    names = {path.stem for folder in folders for path in folder.iterdir() if path.suffix != ".md"}
    assert names & installed == set()


def test_folders_of_the_repository_do_not_shadow_installed_modules() -> None:
    # The root is on sys.path. A folder without __init__.py loses against any installed package.
    assert Path(packaging.__file__).parent != host.ROOT / "packaging"
    found = {path.parent.name for path in host.ROOT.glob("*/__init__.py")}
    assert found == {"bench"}


def test_comparison_distinguishes_the_dtypes() -> None:
    found = comparison.difference(64)
    assert found.float64 < 1e-10 < found.float32 < 1e-4
    assert found.float64_gradients < 1e-10


@pytest.mark.parametrize(
    ("count", "text"),
    [(12, "12 B"), (1536, "1.5 KiB"), (3 << 20, "3.0 MiB"), (1 << 30, "1.00 GiB")],
)
def test_bytes_are_formatted_in_binary_units(count: int, text: str) -> None:
    assert formatting.bytes_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(2.5, "2.5 s"), (0.0123, "12.3 ms"), (0.25, "250 ms"), (4e-5, "40 µs")]
)
def test_seconds_are_formatted_in_a_suitable_unit(seconds: float, text: str) -> None:
    assert formatting.seconds_text(seconds) == text


def test_table_is_markdown_with_aligned_columns() -> None:
    text = formatting.table(["what", "n"], [["long text", "1"], ["x", "100"]])
    assert text.splitlines() == [
        "| what      |   n |",
        "|-----------|----:|",
        "| long text |   1 |",
        "| x         | 100 |",
    ]


def test_table_is_replaced_between_its_comments() -> None:
    end = "<!-- end of table -->\n"
    page = f"a\n<!-- table: x -->\nold\n{end}b\n<!-- table: y -->\n{end}"
    renewed = tables.replace(page, "x", "new")
    assert renewed == page.replace("old", "new")
    assert "two" in tables.replace(renewed, "y", "two")
    assert tables.replace(page, "z", "nothing") == page


def google_benchmark_output() -> dict:
    """What Google Benchmark writes for two lengths and two head_dims."""
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
            for direction in google_pictures.DIRECTIONS
            for method in plot.STYLES
            for dtype in ("f32", "f64")
            for mask in ("full", "causal")
            for length, size in cells
        ],
    }


def test_short_form_keeps_every_google_benchmark(tmp_path: Path) -> None:
    record = google_benchmark.shorten(google_benchmark_output())
    head = {name: value for name, value in record.items() if name != "results"}
    records.write_rows(head, {"results": record["results"]}, tmp_path / "record.json")
    assert json.loads((tmp_path / "record.json").read_text()) == record
    assert len(record["results"]) == 3 * 3 * 2 * 2 * 3
    assert record["results"][0] == {
        "direction": "Forward",
        "method": "flash",
        "dtype": "f32",
        "mask": "full",
        "length": 64,
        "head_dim": 64,
        "seconds": 0.004096,
        "flops_per_second": 64e9,
    }
    assert record["machine"]["date"] == "2026-01-02"


def test_pictures_of_google_benchmark_are_drawn(tmp_path: Path) -> None:
    pictures = google_pictures.draw(google_benchmark.shorten(google_benchmark_output()), tmp_path)
    assert [p.name for p in pictures] == ["time_f32.png", "time_f64.png", "rate_by_head_dim.png"]
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in pictures)
