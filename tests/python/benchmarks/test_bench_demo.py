"""The demonstration's trainings, with a fake flash_train that writes the same files."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench.forecasting import demo_optimizer, demo_report, demo_training
from bench.forecasting.demo_training import Pair, Task
from bench.models.shapes import Shape
from support.forecaster_runs import executable

pytestmark = pytest.mark.once

TASK = Task(columns=("up", "down"), input_size=8, horizon=2, season=3, rows=40)

FAKE = """#!{python}
import csv, json, sys
model, data, *options = sys.argv[1:]
options = dict(option.removeprefix("--").split("=", 1) for option in options)
flash = options["attention"] == "flash"
columns = options["target"].split(",")
errors = {{"model": 1.0 if flash else 1.5, "naive": 2.0, "seasonal_naive": 4.0}}
report = {{
    "arguments": sys.argv[1:],
    "parameters": 7,
    "memory_before_bytes": 1 << 20,
    "memory_peak_bytes": (3 if flash else 9) << 20,
    "training": {{
        "seconds": 2.0 if flash else 6.0,
        "epochs": [{{"train_loss": 0.5, "validation_loss": 0.25 if flash else 0.375}}],
    }},
    "test": {{
        "windows": 5,
        "model": {{"mae": errors["model"]}},
        "naive": {{"mae": 2.0}},
        "mae_in_units": {{column: errors for column in columns}},
    }},
}}
with open(options["report"], "w") as file:
    json.dump(report, file)
with open(options["forecast-csv"], "w", newline="") as file:
    writer = csv.DictWriter(file, ["column", "time", "truth", "forecast"])
    writer.writeheader()
    for column in columns:
        for day in range(1, 5):
            time = f"2015/01/{{day:02}}"
            writer.writerow({{"column": column, "time": time, "truth": day, "forecast": day + 1}})
"""


@pytest.fixture
def task(tmp_path: Path) -> Task:
    """A CSV file of 50 rows, of which the task uses 40."""
    data = tmp_path / "table.csv"
    data.write_text("date,up,down\n" + "".join(f"{i},{i},{-i}\n" for i in range(50)))
    return Task(data, TASK.columns, TASK.input_size, TASK.horizon, TASK.season, TASK.rows)


@pytest.fixture
def pairs(task: Task, tmp_path: Path) -> list[Pair]:
    """All models, trained by the fake flash_train."""
    program = tmp_path / "models" / "flash_train"
    program.parent.mkdir()
    program.write_text(FAKE.format(python=sys.executable))
    program.chmod(0o755)
    return demo_training.train_all(tmp_path, tmp_path / "out", task, threads=1)


def test_every_model_is_trained_with_and_without_flash(pairs: list[Pair]) -> None:
    found = [(pair.model, pair.flash.attention, pair.without.attention) for pair in pairs]
    assert found == [
        ("TFT", "flash", "standard"),
        ("Informer", "flash", "standard"),
        ("Autoformer", "flash", "native"),
        ("FEDformer", "flash", "native"),
        ("PatchTST", "flash", "standard"),
        ("iTransformer", "flash", "standard"),
    ]
    for pair in pairs:
        first, second = (
            [x for x in run.report["arguments"] if "out/" not in x and "--attention" not in x]
            for run in pair.runs
        )
        assert first == second, "the two trainings differ in more than the attention"
        assert {"--target=up,down", "--horizon=2", "--season=3", "--seed=1"} <= set(first)


def test_only_the_last_rows_of_a_long_file_are_used(task: Task, tmp_path: Path) -> None:
    lines = demo_training.last_rows(task, tmp_path).read_text().splitlines()
    assert (lines[0], lines[1], lines[-1], len(lines)) == (
        "date,up,down",
        "10,10,-10",
        "49,49,-49",
        41,
    )
    whole = Task(task.data, rows=50)
    assert demo_training.last_rows(whole, tmp_path) == task.data


def test_missing_file_and_program_are_errors(task: Task, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="nowhere.csv"):
        demo_training.last_rows(Task(tmp_path / "nowhere.csv"), tmp_path)
    with pytest.raises(SystemExit, match="make build"):
        demo_training.train_all(tmp_path / "build", tmp_path, task, threads=1)


def test_tables_show_errors_time_and_memory(
    pairs: list[Pair], task: Task, capsys: pytest.CaptureFixture[str]
) -> None:
    demo_report.print_pairs(pairs, task)
    text = re.sub(" +", " ", capsys.readouterr().out)
    assert "5 test windows of 2 rows" in text
    assert "| PatchTST | 1.000 | 1.500 | 1.000 | 1.500 | 50% less | 25% less |" in text
    assert "| seasonal naive (3 rows) | 4.000 | 4.000 | 4.000 | 4.000 | | |" in text
    assert "| TFT | 7 | 2 s | 6 s | 3.0x | 2.0 MiB | 8.0 MiB | 4.0x | 1e-01 |" in text
    assert (
        "| Autoformer* | 7 | 2 s | 6 s | 3.0x | 2.0 MiB | 8.0 MiB | 4.0x | another model |" in text
    )


def test_picture_is_drawn(pairs: list[Pair], task: Task, tmp_path: Path) -> None:
    path = demo_report.draw(pairs, task, tmp_path)
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("times", [["2015/01/02"], ["2015-01-02 03:00:00"]])
def test_times_are_parsed_as_dates(times: list[str]) -> None:
    assert (demo_report.time_axis(times)[0].year, demo_report.time_axis(["x"])) == (
        2015,
        [0],
    )


@pytest.mark.parametrize("model", demo_training.MODELS)
def test_flash_train_has_every_option_that_the_demonstration_uses(model: str) -> None:
    program = executable()
    text = subprocess.run([program, model, "--help"], check=True, capture_output=True, text=True)
    call = demo_training.command(program, Path("x.csv"), TASK, model, "flash", Path("x"), 1)
    used = {word.split("=")[0] for word in call if word.startswith("--")}
    assert used - set(re.findall(r"--[\w-]+", text.stdout)) == set()


@pytest.mark.parametrize("model", ["PatchTST", "FEDformer"])  # without and with complex parameters
def test_step_with_plain_adam_is_measured_against_fused(model: str) -> None:
    row = demo_optimizer.measure(Shape(model, 40, batch=2, horizon=8))
    assert min(row.plain, row.fused, row.ratio) > 0
    text = demo_optimizer.table([row])
    assert "Adam, fused=True" in text.splitlines()[0]
    assert text.splitlines()[2].startswith(f"| {model}")
    assert f"{row.ratio:.2f}x" in text
