"""The command that plans a call on many processes: options, errors, and its page."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import torch
from flash_attention.distributed import plan, probe

pytestmark = pytest.mark.once

PAGE = Path(__file__).resolve().parents[3] / "docs" / "distributed.md"
GIVEN = ["--forward-rate", "1e11", "--backward-rate", "8e10"]
WHOLE = "expected a whole number from"
NUMBER = "expected a number, "

REFUSED = {
    "no-length": (["--processes", "2"], "the following arguments are required: --length"),
    "nan": (["--length", "nan"], f"argument --length: {WHOLE} 1 to .* such as 4096 .* got 'nan'"),
    "negative": (["--length", "-5"], f"argument --length: {WHOLE} 1 to .* got '-5'"),
    "zero": (["--length", "0"], f"argument --length: {WHOLE} 1 to .* got '0'"),
    "fraction": (["--length", "2.5"], f"argument --length: {WHOLE} 1 to .* got '2.5'"),
    "infinite": (["--length", "inf"], f"argument --length: {WHOLE} 1 to .* got 'inf'"),
    "overflow": (["--length", "1e999999999"], f"argument --length: {WHOLE} 1 to .* got '1e9999"),
    "text": (["--length", "long"], f"argument --length: {WHOLE} 1 to .* got 'long'"),
    "digits": (["--length", "9" * 5000], f"argument --length: {WHOLE} 1 to .* got '9{{37}}...'"),
    "processes": (["--processes", "1e6"], f"argument --processes: {WHOLE} 1 to 4096.* got '1e6'"),
    "bandwidth": (["--bandwidth", "0"], f"argument --bandwidth: {NUMBER}from .* got '0'"),
    "rate": (["--forward-rate", "nan"], f"argument --forward-rate: {NUMBER}from .* got 'nan'"),
    "tiny": (["--forward-rate", "1e-400"], f"--forward-rate: {NUMBER}from .* got '1e-400'"),
    "huge": (["--memory", "1e400"], f"argument --memory: {NUMBER}from .* got '1e400'"),
    "latency": (["--latency", "-1"], f"argument --latency: {NUMBER}0, or one from .* got '-1'"),
    "window": (["--window", "5"], "argument --window: expected 2 arguments"),
    "sides": (["--window", "-2", "0"], f"argument --window: {WHOLE} -1 to .* got '-2'"),
    "heads": (["--heads", "6", "--key-heads", "4"], "expected --heads as a multiple of --key"),
    "dtype": (["--dtype", "int8"], "argument --dtype: invalid choice: 'int8'"),
    "balance": (["--load-balance", "best"], "argument --load-balance: invalid choice: 'best'"),
    "unknown": (["--lenght", "5"], "unrecognized arguments: --lenght"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_invalid_option_says_what_was_expected(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    given, message = REFUSED[name]
    needed = [] if name == "no-length" else ["--length", "100", "--processes", "2"]
    with pytest.raises(SystemExit) as exit_:
        plan.main([*needed, *GIVEN, *given])
    assert exit_.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def printed(capsys: pytest.CaptureFixture[str], *options: str, status: int = 0) -> str:
    assert plan.main([*GIVEN, *options]) == status
    return capsys.readouterr().out


def test_every_method_and_balance_is_compared(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "--length", "1e6", "--processes", "8", "--causal")
    assert text.startswith("1,000,000 positions on 8 processes, up to 125,000 each: ")
    rows = re.findall(r'^"(\w+)" +(None|"zigzag") ', text, re.M)
    assert rows == [
        (method, balance)
        for balance in ("None", '"zigzag"')
        for method in ("ring", "all_gather", "ulysses")
    ]
    assert "100 GFLOP/s" in text and "80.0 GFLOP/s" in text and "(given)" in text
    assert "1.25 GB/s, 50.0 µs (assumed)" in text
    assert re.search(r'^Best: method="\w+", load_balance="zigzag"$', text, re.M)


def test_ulysses_is_left_out_without_enough_heads(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--length", "1000", "--processes", "16", "--heads", "32", "--key-heads", "8")
    text = printed(capsys, *options)
    assert re.findall(r'^"(\w+)" ', text, re.M) == ["ring", "all_gather", "ulysses"]
    assert '"ulysses" needs 16 groups of heads, got 8.' in text
    assert "32 heads (8 of keys, 32 of values) of 64" in text


def test_no_method_fits_the_memory(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--length", "1e6", "--processes", "2", "--memory", "1e6")
    text = printed(capsys, *options, status=1)
    assert "None fits the 977 KiB of a process: take more processes." in text
    # The ring is the smallest.
    sizes = printed(capsys, "--length", "1e6", "--processes", "64", "--memory", "1e9")
    assert 'Best: method="ring"' in sizes


def test_options_reach_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--length", "1e6", "--processes", "4", "--heads", "4", "--value-dim", "32"]
    options += ["--window", "4095", "0", "--batch", "2", "--dtype", "bfloat16", "--forward-only"]
    text = printed(capsys, *options, "--load-balance", "none", "--latency", "0", "--call", "0")
    assert "batch 2, 4 heads of 64 (values 32), bfloat16, window 4095, 0; forward." in text
    assert "backward" not in text
    assert "0 µs (given)" in text
    # 4,095 rows of keys and values travel.
    ring = re.search(r'^"ring" .*$', text, re.M)[0]
    assert f"{4095 * 2 * 4 * (64 + 32) * 2 / 2**20:#.3g} MiB" in ring


@pytest.mark.parametrize(("count", "most"), [("1", "9007199254740992"), ("3", "1")])
def test_extreme_lengths(capsys: pytest.CaptureFixture[str], count: str, most: str) -> None:
    text = printed(capsys, "--length", most, "--processes", count, "--causal")
    assert "nan" not in text and "inf" not in text


def test_rates_are_measured_unless_given(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def measured(*arguments: object) -> probe.Measured:
        asked.append(arguments)
        return probe.Measured(3e10, 2e10, 4e-5)

    monkeypatch.setattr(probe, "measure", measured)
    options = ["--length", "1000", "--processes", "2", "--head-dim", "32", "--threads", "3"]
    assert plan.main([*options, "--backward-rate", "5e9"]) == 0
    assert asked == [(32, 32, torch.float32, 3)]
    text = capsys.readouterr().out
    assert "forward 30.0 GFLOP/s, backward 5.00 GFLOP/s, 40.0 µs for each call" in text
    assert "(measured here, 3 threads, unless given)" in text


def test_the_probe_measures_rates_of_this_machine() -> None:
    threads = torch.get_num_threads()
    found = probe.measure(16, 8, torch.float32, 1, length=64)
    assert torch.get_num_threads() == threads
    # From the slowest instruction set on a busy machine to the fastest.
    assert 1e6 < found.forward < 1e13
    assert 1e6 < found.backward < 1e13
    assert 0 < found.call < 1.0


def test_the_page_shows_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    page = PAGE.read_text()
    found = re.search(
        r"```bash\npython -m flash_attention\.distributed\.plan (.*?)```.*?```text\n(.*?)```",
        page,
        re.S,
    )
    assert found is not None
    command, shown = found.groups()
    assert plan.main(shlex.split(command.replace("\\\n", " "))) == 0
    assert capsys.readouterr().out == shown


def test_it_runs_as_a_module(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, plan.__name__)  # as it is in a new process
    monkeypatch.setattr(sys, "argv", ["plan.py", "--length", "1000", "--processes", "2", *GIVEN])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_module(plan.__name__, run_name="__main__")
    assert exit_.value.code == 0
    assert capsys.readouterr().out.startswith("1,000 positions on 2 processes")
