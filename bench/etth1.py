"""PatchTST and iTransformer trained on ETTh1 by flash_train and, in turns, by neuralforecast's
models in a plain PyTorch loop: the time of an epoch, and the test errors of both.

    python=.venv-neuralforecast/bin/python
    $python bench/etth1.py ETTh1.csv                          # both models; 32 minutes
    $python bench/etth1.py ETTh1.csv --models iTransformer    # one of them; 3 minutes
    $python bench/etth1.py ETTh1.csv --epochs 1               # a quick look; 90 seconds

The table is at https://github.com/zhouhaoyi/ETDataset and not part of this repository: its licence,
CC BY-ND 4.0, is another one.

96 hours are forecast from the last 96 (iTransformer) or 336 (PatchTST): mean squared error, Adam,
the learning rate lowered from epoch to epoch, the best epoch chosen by the validation part. Both
sides begin with the same weights and see the same batches in the same order; only what dropout
draws differs. The loop is what a user of PyTorch writes: neuralforecast's own `forward`,
`torch.nn.functional.mse_loss`, `torch.optim.Adam` as it is.

Both run on one core with one thread each, one at a time: flash_train is stopped (SIGSTOP) while
the other trains an epoch. The time of an epoch includes its validation on both sides, and is taken
by the clock of this program. Between the line that ends an epoch and its stop flash_train may begin
the next one; such a step counts in the turn in which it was done. Both round denormal numbers to
zero.

At the end the weights that flash_train found are loaded into neuralforecast's model, which has to
have the same test errors.
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

import etth1_data
import etth1_results
import flash_attention
import measure
import model_pair
import plain_training
import progress
import results
import safetensors.torch
import torch
from etth1_data import ETTH1, Parts, Split
from etth1_results import Seconds, TrainingResult
from etth1_settings import SETTINGS, Settings
from plain_training import Errors, PlainTraining
from training_process import TrainingProcess

# What errors may differ by, beside themselves: float32 and another order of sums. Other windows,
# scales or weights are further off.
LARGEST_DIFFERENCE = 1e-4


@dataclass(frozen=True)
class Call:
    """One training: of what, on what, from which seed, and for how long."""

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
        """neuralforecast's model as it is before the training."""
        options = self.settings.original_options(len(self.split.columns), self.seed)
        return model_pair.create(self.settings.model, **options)

    def parts(self) -> Parts:
        """The windows of the table, standardised."""
        series = etth1_data.standardised(etth1_data.read_series(self.data, self.split), self.split)
        settings = self.settings
        return etth1_data.parts(
            series, self.split, settings.input_size, settings.horizon, settings.together
        )


def must_agree(what: str, ours: float, theirs: float, difference: float = 0.0) -> None:
    """Ends the program where the two sides do not do the same."""
    if not abs(ours - theirs) <= difference * abs(theirs):
        sys.exit(
            f"bench/etth1.py: expected the same {what} of flash_train and of neuralforecast, got "
            f"{ours:.7g} and {theirs:.7g}; a comparison would mean nothing"
        )


def check_start(process: TrainingProcess, plain: PlainTraining) -> None:
    """As many windows and parameters."""
    trained = sum(p.numel() for p in plain.model.parameters() if p.requires_grad)
    must_agree("number of training windows", process.windows, len(plain.parts.train))
    must_agree("number of parameters", process.parameters, trained)


def check_end(call: Call, report: dict[str, Any], weights: Path, parts: Parts) -> None:
    """The same test windows, and the same errors from the same weights."""
    test, batch = report["test"], call.settings.batch_size
    must_agree("number of test windows", test["windows"], len(parts.test))
    naive = plain_training.naive_errors(parts.test, batch)
    must_agree("error of the last value", test["naive"]["mse"], naive.mse, LARGEST_DIFFERENCE)
    model = call.original()
    model.load_state_dict(safetensors.torch.load_file(weights))
    found = plain_training.model_errors(model, parts.test, batch)
    for name, error in (("mae", found.mae), ("mse", found.mse)):
        what = f"{name.upper()} of flash_train's weights"
        must_agree(what, test["model"][name], error, LARGEST_DIFFERENCE)


def take_turns(
    call: Call, process: TrainingProcess, plain: PlainTraining, left: progress.Progress
) -> Seconds:
    """An epoch of flash_train, one of the other, and so on, with a line of progress for each."""
    seconds: Seconds = {"ours": [], "neuralforecast": []}
    for epoch in range(1, call.epochs + 1):
        ours = process.epoch()
        theirs = measure.timed(plain.epoch)
        seconds["ours"].append(ours)
        seconds["neuralforecast"].append(theirs)
        print(
            f"[etth1 {left.advance()}] {call.label}, epoch {epoch}/{call.epochs}: "
            f"{measure.seconds_text(ours)}, neuralforecast {measure.seconds_text(theirs)}, "
            f"{theirs / ours:.2f}x as fast; validation MSE {process.validation_loss:.4f}, "
            f"neuralforecast {plain.validation[-1].mse:.4f}",
            flush=True,
        )
    return seconds


def train(call: Call, executable: Path, left: progress.Progress) -> TrainingResult:
    """Both trainings and both tests."""
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
    """Model by model, seed by seed."""
    for model in args.models:
        for seed in args.seeds:
            settings = SETTINGS[model]
            yield Call(settings, args.data, ETTH1, seed, args.epochs or settings.epochs)


def describe_run() -> dict[str, Any]:
    """Where and how, for the record."""
    where = measure.machine()
    kernels = flash_attention.build_info().active
    text = f"{measure.describe(where)}; kernels of this project: {kernels}"
    return {
        "where": f"{text}; neuralforecast {model_pair.VERSION}; denormals flushed to zero",
        "machine": where,
        "neuralforecast": model_pair.VERSION,
    }


def run(args: argparse.Namespace) -> None:
    """One training after the other; what is measured is kept, whatever happens next."""
    calls, found, where = list(plan(args)), [], describe_run()
    etth1_data.read_series(args.data, ETTH1)  # what is wrong with the table is said at once
    print(where["where"], flush=True)
    left = progress.Progress([c.settings.epoch_seconds for c in calls for _ in range(c.epochs)])
    for call in calls:
        found.append(train(call, args.flash_train, left))
        if args.json is not None:
            results.write_rows(where, {"trainings": [r.row() for r in found]}, args.json)
    print(f"\n{etth1_results.table(found)}\n\nMeasured: {where['where']}.")


def positive(text: str) -> int:
    """A number of epochs."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {number}")
    return number


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    executable = measure.ROOT / "build" / "models" / "flash_train"
    found.add_argument("data", type=Path, metavar="CSV", help="the table ETTh1")
    found.add_argument("--models", nargs="+", choices=SETTINGS, default=[*SETTINGS])
    found.add_argument("--epochs", type=positive, help="fewer than 10 and 32, for a quick look")
    found.add_argument("--seeds", nargs="+", type=int, default=[1], metavar="SEED")
    found.add_argument("--flash-train", type=Path, default=executable, metavar="PATH")
    found.add_argument("--json", type=Path, help="where the results go")
    return found


def main() -> int:
    args = parser().parse_args()
    measure.pin(1)  # flash_train is started from here, and keeps to the same core
    torch.set_flush_denormal(True)
    model_pair.neuralforecast()  # what is missing is said at once
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        run(args)
    except KeyboardInterrupt:
        print("bench/etth1.py: interrupted; flash_train was ended, too", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
