"""flash_train loses no work: it checks its outputs before the first step, and errors after that
leave the best weights on disk."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from support.forecaster_runs import error_of, executable, run, small, write_waves

pytestmark = pytest.mark.once


@pytest.fixture
def waves(tmp_path: Path) -> Path:
    """A valid CSV file."""
    return write_waves(tmp_path / "waves.csv")


def arguments(waves: Path, **options: object) -> tuple[object, ...]:
    """Arguments of a small training on that table."""
    return ("PatchTST", waves, "--target", "up", *small(**options))


def files(folder: Path) -> set[str]:
    """The names in a folder."""
    return {path.name for path in folder.iterdir()}


def changed_while_training(
    command: tuple[object, ...], change: Callable[[subprocess.Popen], None]
) -> tuple[int, str]:
    """Runs flash_train and calls `change` with its process after two epochs.

    By then the files of the first epoch are written. Returns the exit status and stderr.
    """
    # Under nohup, the program would inherit that hangups are ignored.
    words = ["env", "--default-signal=HUP", str(executable()), *(str(word) for word in command)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    shown = process.stderr.readline() + process.stderr.readline()
    change(process)
    _, rest = process.communicate(timeout=300)
    return process.returncode, shown + rest


def test_names_not_in_utf8_are_refused_before_training(tmp_path: Path):
    path, model = tmp_path / "shops.csv", tmp_path / "model"
    rows = [
        f"2020-01-01T{hour:02}:{minute:02},caf\xe9,1" for hour in range(4) for minute in range(60)
    ]
    path.write_text("\n".join(["time,shop,sold", *rows]) + "\n", encoding="latin-1")
    process = run(
        *("PatchTST", path, "--target", "sold", "--id-column", "shop"),
        *(*small(), "--output", model),
    )
    assert process.returncode == 1
    assert f'{path}, line 2, column shop: expected text in UTF-8, got "caf\\xE9"' in process.stderr
    assert "epoch" not in process.stderr
    assert files(tmp_path) == {"shops.csv"}


def test_paths_not_in_utf8_are_refused_before_training(waves: Path, tmp_path: Path):
    report = os.fsencode(tmp_path) + b"/caf\xe9.json"
    words = [str(word).encode() for word in (executable(), *arguments(waves))]
    process = subprocess.run([*words, b"--report", report], capture_output=True, timeout=300)
    assert process.returncode == 1
    assert b"expected a path in UTF-8 as --report" in process.stderr
    assert b"epoch" not in process.stderr


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ("--output", "--output"),
        ("--checkpoint", "--checkpoint"),
        ("--forecast-csv", "--forecast-csv"),
        ("--forecast-png", "--forecast-png"),
        ("--report", "--report"),
    ],
)
def test_unwritable_output_is_refused_before_training(
    option: str, name: str, waves: Path, tmp_path: Path
):
    for path, reason in (
        (tmp_path / "none" / "file", "No such file or directory"),
        (tmp_path, "expected a file to write, got a folder"),
        (tmp_path / ("x" * 250), "File name too long"),
    ):
        error = error_of(*arguments(waves), option, path)
        assert str(path) in error and reason in error
        assert "epoch" not in error
    assert files(tmp_path) == {"waves.csv"}


def test_interrupt_checkpoint_path_is_checked_before_training(waves: Path, tmp_path: Path):
    """Its name is longer than the model's."""
    error = error_of(*arguments(waves), "--output", tmp_path / ("x" * 230))
    assert "File name too long" in error and ".checkpoint" in error and "epoch" not in error
    (tmp_path / "model.checkpoint").mkdir()
    error = error_of(*arguments(waves), "--output", tmp_path / "model")
    assert (
        f"{tmp_path}/model.checkpoint: expected a file to write, got a folder (the checkpoint that "
        "Ctrl-C writes, named by --checkpoint)"
    ) in error
    assert files(tmp_path) == {"waves.csv", "model.checkpoint"}


def test_outputs_may_not_overwrite_inputs_or_each_other(waves: Path, tmp_path: Path):
    table = waves.read_text()
    (tmp_path / "link").symlink_to(waves)
    for path in (waves, tmp_path / "link", tmp_path / "." / "waves.csv"):
        error = error_of(*arguments(waves), "--forecast-csv", path)
        assert "expected different files as the table and --forecast-csv" in error
    assert waves.read_text() == table
    model = tmp_path / "model"
    error = error_of(*arguments(waves), "--output", model, "--report", model)
    assert "expected different files as --output and --report" in error
    error = error_of(*arguments(waves), "--output", model, "--report", f"{model}.checkpoint")
    assert "expected different files as --report and the checkpoint that Ctrl-C" in error
    assert run(*arguments(waves, epochs=1), "--output", model).returncode == 0
    error = error_of("evaluate", model, waves, "--report", model)
    assert "expected different files as the model and --report" in error


def test_full_disk_is_detected_before_training(waves: Path, tmp_path: Path):
    """A file size limit simulates the full disk."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))

    command = [str(executable()), *(str(word) for word in arguments(waves))]
    process = subprocess.run(
        [*command, "--output", str(tmp_path / "model")],
        preexec_fn=limit,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 1, process.stderr
    assert "cannot be written: File too large" in process.stderr
    assert "epoch" not in process.stderr
    assert files(tmp_path) == {"waves.csv"}


def test_training_leaves_no_temporary_files(waves: Path, tmp_path: Path):
    process = run(
        *(*arguments(waves), "--output", tmp_path / "model", "--report", tmp_path / "report"),
        *("--forecast-csv", tmp_path / "forecast"),
    )
    assert process.returncode == 0, process.stderr
    assert files(tmp_path) == {"waves.csv", "model", "report", "forecast"}


def test_failed_output_does_not_affect_other_outputs(waves: Path, tmp_path: Path):
    """/dev/full can be opened, but every write fails."""
    model, report = tmp_path / "model", tmp_path / "report"
    process = run(
        *(*arguments(waves), "--output", model, "--report", report),
        *("--forecast-csv", "/dev/full"),
    )
    assert process.returncode == 1
    assert "/dev/full: cannot be written: No space left on device" in process.stderr
    assert f"the best so far, is in {model})" in process.stderr
    assert f"Model written to {model}\nReport written to {report}\n" in process.stdout
    assert json.loads(report.read_text())["test"]["windows"] > 0
    assert run("evaluate", model, waves).returncode == 0


def test_best_weights_stay_on_disk_when_the_model_cannot_be_written(waves: Path, tmp_path: Path):
    model = tmp_path / "model"

    def make_folder(process: subprocess.Popen) -> None:
        model.mkdir()

    command = (*arguments(waves, epochs=30), "--output", model, "--report", tmp_path / "report")
    code, error = changed_while_training(command, make_folder)
    assert code == 1
    assert f"{model}: cannot be written: Is a directory" in error
    assert f"the best so far, is in {model}.best)" in error
    assert (tmp_path / "report").exists()
    assert run("evaluate", f"{model}.best", waves).returncode == 0


def test_training_continues_when_the_disk_fills_up(waves: Path, tmp_path: Path):
    model = tmp_path / "model"

    def fill(process: subprocess.Popen) -> None:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))

    command = (
        *(*arguments(waves, epochs=30), "--output", model),
        *("--checkpoint", tmp_path / "checkpoint"),
    )
    code, error = changed_while_training(command, fill)
    assert code == 1
    assert "checkpoint: cannot be written: File too large; the training goes on" in error
    assert "epoch 30/30" in error
    assert f"{model}: cannot be written: File too large" in error
    assert run("resume", tmp_path / "checkpoint").returncode == 0


def test_best_weights_survive_a_non_finite_loss(waves: Path, tmp_path: Path):
    """The learning rate is so high that the loss overflows after some epochs."""
    model = tmp_path / "model"
    best = tmp_path / "model.best"
    for rate in ("1e8", "2e8", "3e8", "5e7", "2e7", "5e8"):  # the epoch depends on rounding
        model.unlink(missing_ok=True)
        command = arguments(waves, epochs=200, learning_rate=rate, batch_size=10**9)
        process = run(*command, "--output", model)
        if process.returncode == 1 and best.exists():
            break
    else:
        pytest.fail("no rate made the loss overflow after the first epoch")
    assert "expected a finite loss, got" in process.stderr
    assert "lower the learning rate" in process.stderr
    assert f"the best so far, is in {best})" in process.stderr
    assert not model.exists()
    assert run("evaluate", best, waves).returncode == 0


def test_existing_model_is_kept_until_training_ends(waves: Path, tmp_path: Path):
    model = tmp_path / "model"
    model.write_text("older")

    def stop(process: subprocess.Popen) -> None:
        assert model.read_text() == "older"
        process.send_signal(signal.SIGINT)

    command = (*arguments(waves, epochs=1000), "--output", model)
    code, error = changed_while_training(command, stop)
    assert code == 130
    assert "Stopping after this step to write a checkpoint; once more ends at once" in error
    assert f"To go on:\n  flash_train resume {model}.checkpoint\n" in error
    assert f"the best so far, is in {model}.best" in error
    assert model.read_text() == "older"
    assert run("evaluate", f"{model}.best", waves).returncode == 0


def test_hangup_is_treated_as_an_interrupt(waves: Path, tmp_path: Path):
    def hang_up(process: subprocess.Popen) -> None:
        process.send_signal(signal.SIGHUP)

    command = (*arguments(waves, epochs=1000), "--output", tmp_path / "model")
    code, _ = changed_while_training(command, hang_up)
    assert code == 130
    assert (tmp_path / "model.checkpoint").exists()


def test_training_survives_a_closed_stdout(waves: Path, tmp_path: Path):
    """As in `flash_train ... | head -1`."""
    ours, theirs = os.pipe()
    os.close(ours)
    command = [str(executable()), *(str(word) for word in arguments(waves))]
    process = subprocess.run(
        [*command, "--output", str(tmp_path / "model")],
        stdout=theirs,
        stderr=subprocess.PIPE,
        text=True,
        timeout=300,
    )
    os.close(theirs)
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("--epochs", value) for value in ("0", "-1", "1.5", "99999999999999999999", "ten", "")),
        *(("--learning-rate", value) for value in ("0", "nan", "inf", "-1", "1e999")),
        *(("--train-fraction", value) for value in ("nan", "-0.1", "1.1")),
        *(("--decay", value) for value in ("nan", "2")),
        *(("--seed", value) for value in ("-1", "18446744073709551616")),
        *(("--threads", value) for value in ("0", "1025", "4294967297")),
        *(("--hidden-size", value) for value in ("9223372036854775808", "0x10")),
        *(("--encoder-layers", value) for value in ("1001", "9223372036854775807")),
        ("--stride", "1000000000"),
        ("--dropout", "nan"),
    ],
)
def test_invalid_numbers_are_refused(option: str, value: str, waves: Path):
    error = error_of(*arguments(waves, **{option[2:].replace("-", "_"): value}))
    assert option in error
    assert "expected a " in error or "positive" in error, error


@pytest.mark.parametrize("most", [2**63 - 1, 2**62])
def test_numbers_near_the_integer_limit(most: int, waves: Path):
    for option, expected in (
        ("input_size", "rows in the training part, got 112 of 160"),
        ("horizon", "rows in the training part, got 112 of 160"),
        ("season", "expected --season of at most the input size"),
    ):
        assert expected in error_of(*arguments(waves, **{option: most}))
    for rows in ((most, 1), (1, most), (most, most)):
        split = ("--train-rows", rows[0], "--validation-rows", rows[1])
        error = error_of(*arguments(waves), *split)
        assert f"got 160 rows for parts of {rows[0]}, {rows[1]} and the rest" in error
    taken = run(
        *(*arguments(waves, epochs=most, batch_size=most), "--patience", 1),
        *("--decay-after", most, "--seed", 2**64 - 1, "--block-size", most),
    )
    assert taken.returncode == 0, taken.stderr
    assert f"epoch 1/{most}  step 1 " in taken.stderr


def test_values_beyond_float32_are_refused(tmp_path: Path):
    path = tmp_path / "table.csv"
    for value, scaler in (("1e300", "standard"), ("1e39", "none")):
        rows = [f"{row},{value if row % 2 else 0}" for row in range(160)]
        path.write_text("\n".join(["t,y", *rows]) + "\n")
        error = error_of("PatchTST", path, "--target", "y", *small(), "--table-scaler", scaler)
        assert "expected numbers in the target of y, which once scaled are within" in error


def test_nearly_equal_values_are_plotted(tmp_path: Path):
    """Computing the ticks of an axis only a few roundings long used to loop forever."""
    path, picture = tmp_path / "table.csv", tmp_path / "picture.png"
    rows = [f"{row},{10**17 + row % 2 * 16}" for row in range(160)]
    path.write_text("\n".join(["t,y", *rows]) + "\n")
    process = run("PatchTST", path, "--target", "y", *small(epochs=1), "--forecast-png", picture)
    if "expected a flash_train compiled with Cairo" in process.stderr:
        pytest.skip("built without Cairo")
    assert process.returncode == 0, process.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")
