"""Trains PatchTST and iTransformer on ETTh1 with flash_train and, in turns, with neuralforecast's
models in a plain PyTorch loop; prints the time of an epoch and the test errors of both.

    python=.venv-neuralforecast/bin/python
    $python bench/forecasting/etth1.py ETTh1.csv                        # both models; 20 minutes
    $python bench/forecasting/etth1.py ETTh1.csv --models iTransformer  # one of them; 2 minutes
    $python bench/forecasting/etth1.py ETTh1.csv --epochs 1             # a quick look; 90 seconds

ETTh1.csv is at https://github.com/zhouhaoyi/ETDataset. It is not part of this repository because
its license, CC BY-ND 4.0, differs.

The models forecast 96 hours from the last 96 (iTransformer) or 336 (PatchTST), trained with mean
squared error and Adam; the learning rate decays from epoch to epoch and the validation part selects
the best epoch. Both sides start from the same weights and see the same batches in the same order;
only the dropout masks differ. The loop is what a PyTorch user writes: neuralforecast's own
`forward`, `torch.nn.functional.mse_loss` and `torch.optim.Adam` with its defaults.

Both sides run on one core with one thread, one at a time: flash_train is stopped (SIGSTOP) while
the other side trains an epoch. This program's clock times each epoch, validation included.
flash_train may start the next epoch before it is stopped; that step counts towards the epoch that
just ended. Both flush denormals to zero.

Finally, the weights that flash_train found are loaded into neuralforecast's model, which must give
the same test errors.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from bench.common import formatting, host, progress, timing
from bench.forecasting import etth1_data, etth1_results, plain_training
from bench.forecasting.etth1_data import ETTH1, Parts, Split
from bench.forecasting.etth1_results import Seconds, TrainingResult
from bench.forecasting.etth1_settings import SETTINGS, Settings
from bench.forecasting.plain_training import Errors, PlainTraining
from bench.forecasting.training_process import TrainingProcess
from bench.models import training_pair
from bench.report import records

# Relative difference allowed between errors, for another order of summation in float32. Different
# windows, scales or weights differ by more.
LARGEST_DIFFERENCE = 1e-4


@dataclass(frozen=True)
class Call:
    """One training: its model, data, seed and number of epochs."""

    settings: Settings
    data: Path
    split: Split
    seed: int
    epochs: int

    @property
    def label(self) -> str:
        """For a line of progress."""
        return f"{self.settings.model}, seed {self.seed}"

    def original(self) -> torch.nn.Module:
        """neuralforecast's model with its initial weights."""
        options = self.settings.original_options(len(self.split.columns), self.seed)
        return training_pair.create(self.settings.model, **options)

    def parts(self) -> Parts:
        """The windows of the CSV file, standardized."""
        series = etth1_data.standardized(etth1_data.read_series(self.data, self.split), self.split)
        settings = self.settings
        return etth1_data.parts(
            series, self.split, settings.input_size, settings.horizon, settings.together
        )


def must_agree(what: str, ours: float, theirs: float, difference: float = 0.0) -> None:
    """Exits if the two sides differ."""
    if not abs(ours - theirs) <= difference * abs(theirs):
        sys.exit(
            f"bench/forecasting/etth1.py: expected the same {what} in flash_train and in "
            f"neuralforecast, got {ours:.7g} and {theirs:.7g}; a comparison would be meaningless"
        )


def check_start(process: TrainingProcess, plain: PlainTraining) -> None:
    """The numbers of windows and parameters must agree."""
    trained = sum(p.numel() for p in plain.model.parameters() if p.requires_grad)
    must_agree("number of training windows", process.windows, len(plain.parts.train))
    must_agree("number of parameters", process.parameters, trained)


def check_end(call: Call, report: dict[str, Any], weights: Path, parts: Parts) -> None:
    """The test windows, and the errors from the same weights, must agree."""
    test, batch = report["test"], call.settings.batch_size
    must_agree("number of test windows", test["windows"], len(parts.test))
    naive = plain_training.naive_errors(parts.test, batch)
    must_agree("error of the naive forecast", test["naive"]["mse"], naive.mse, LARGEST_DIFFERENCE)
    model = call.original()
    model.load_state_dict(safetensors.torch.load_file(weights))
    found = plain_training.model_errors(model, parts.test, batch)
    for name, error in (("mae", found.mae), ("mse", found.mse)):
        what = f"{name.upper()} of flash_train's weights"
        must_agree(what, test["model"][name], error, LARGEST_DIFFERENCE)


def take_turns(
    call: Call, process: TrainingProcess, plain: PlainTraining, left: progress.Progress
) -> Seconds:
    """Trains epoch by epoch on both sides in turns and prints a line for each epoch."""
    seconds: Seconds = {"ours": [], "neuralforecast": []}
    for epoch in range(1, call.epochs + 1):
        ours = process.epoch()
        theirs = timing.timed(plain.epoch)
        seconds["ours"].append(ours)
        seconds["neuralforecast"].append(theirs)
        print(
            f"[etth1 {left.advance()}] {call.label}, epoch {epoch}/{call.epochs}: "
            f"{formatting.seconds_text(ours)}, neuralforecast {formatting.seconds_text(theirs)}, "
            f"{theirs / ours:.2f}x as fast; validation MSE {process.validation_loss:.4f}, "
            f"neuralforecast {plain.validation[-1].mse:.4f}",
            flush=True,
        )
    return seconds


def train(call: Call, executable: Path, left: progress.Progress) -> TrainingResult:
    """Trains and tests both sides."""
    settings, parts = call.settings, call.parts()
    plain = PlainTraining(call.original(), settings, parts, call.seed)
    with tempfile.TemporaryDirectory() as folder:
        stem = Path(folder) / settings.model
        command = settings.command(executable, call.data, call.split, call.seed, call.epochs, stem)
        with TrainingProcess(command) as process:
            check_start(process, plain)
            seconds = take_turns(call, process, plain, left)
            process.finish()
        report = json.loads(stem.with_suffix(".json").read_text())
        check_end(call, report, stem.with_suffix(".safetensors"), parts)
    training, test = report["training"], report["test"]
    return TrainingResult(
        model=settings.model,
        input_size=settings.input_size,
        seed=call.seed,
        seconds=seconds,
        best_epoch={"ours": training["best_epoch"], "neuralforecast": plain.best_epoch},
        train_loss={
            "ours": [epoch["train_loss"] for epoch in training["epochs"]],
            "neuralforecast": plain.train_losses,
        },
        validation={
            "ours": [epoch["validation_mse"] for epoch in training["epochs"]],
            "neuralforecast": [errors.mse for errors in plain.validation],
        },
        test={"ours": Errors(**test["model"]), "neuralforecast": plain.test()},
    )


def plan(args: argparse.Namespace) -> Iterator[Call]:
    """The trainings that the options select, model by model, seed by seed."""
    for model in args.models:
        for seed in args.seeds:
            settings = SETTINGS[model]
            yield Call(settings, args.data, ETTH1, seed, args.epochs or settings.epochs)


def run(args: argparse.Namespace) -> None:
    """Runs all trainings and writes the results after each, in case a later one fails."""
    calls, found, where = list(plan(args)), [], training_pair.describe_run()
    etth1_data.read_series(args.data, ETTH1)  # fails at once if the file is unusable
    print(where["where"], flush=True)
    left = progress.Progress([c.settings.epoch_seconds for c in calls for _ in range(c.epochs)])
    for call in calls:
        found.append(train(call, args.flash_train, left))
        if args.json is not None:
            records.write_rows(where, {"trainings": [r.row() for r in found]}, args.json)
    print(f"\n{etth1_results.table(found)}\n\nMeasured: {where['where']}.")


def positive(text: str) -> int:
    """A number of epochs, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {number}")
    return number


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    executable = host.ROOT / "build" / "models" / "flash_train"
    found.add_argument("data", type=Path, metavar="CSV", help="the file ETTh1.csv")
    found.add_argument("--models", nargs="+", choices=SETTINGS, default=[*SETTINGS])
    found.add_argument("--epochs", type=positive, help="fewer than 10 and 32, for a quick look")
    found.add_argument("--seeds", nargs="+", type=int, default=[1], metavar="SEED")
    found.add_argument("--flash-train", type=Path, default=executable, metavar="PATH")
    found.add_argument("--json", type=Path, help="where the results go")
    return found


def main() -> int:
    args = parser().parse_args()
    host.pin(1)  # flash_train inherits the core
    torch.set_flush_denormal(True)
    training_pair.neuralforecast()  # fails at once if it is missing
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        run(args)
    except KeyboardInterrupt:
        print(
            "bench/forecasting/etth1.py: interrupted; flash_train was ended, too", file=sys.stderr
        )
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
