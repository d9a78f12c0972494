"""Training on several processes: the numbers of one, lost processes, and invalid calls."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from support.forecaster_runs import SMALL, executable, run, small, write_waves
from support.process_pool import ProcessPool
from support.training_processes import kill_after_an_epoch, main_with_output, start_torchrun

pytestmark = pytest.mark.once

# The same terms in another order: 1e-8 of a loss. Adam divides gradients by their size, so the
# rounding error of one that is 0, as those of biases before a batch norm, moves the weight by the
# learning rate, which the validation sees.
SAME_LOSS = 1e-6
SAME_VALIDATION = 1e-4
LEARNING_RATE = 1e-4

NO_DROPOUT = {
    "PatchTST": {"dropout": 0, "fc_dropout": 0, "head_dropout": 0, "attn_dropout": 0},
    "TFT": {"dropout": 0, "attn_dropout": 0},
    # With this factor, every query is among those of sparse attention, whatever is drawn.
    "Informer": {"dropout": 0, "factor": 10},
    "Autoformer": {"dropout": 0},
    "FEDformer": {"dropout": 0},
    "iTransformer": {"dropout": 0},
}


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPool]:
    with ProcessPool(3) as processes:
        yield processes


@pytest.fixture
def waves(tmp_path: Path) -> Path:
    return write_waves(tmp_path / "waves.csv")


def command(model: str, table: Path, output: Path, **options: Any) -> list[str]:
    files = ["--output", str(output), "--report", str(output.with_suffix(".json"))]
    return [model, str(table), "--target", "up,down", *small(model, **options), *files]


def epochs_of(output: Path) -> list[dict[str, float]]:
    return json.loads(output.with_suffix(".json").read_text())["training"]["epochs"]


def assert_same_losses(together: Path, alone: Path) -> None:
    """The losses of every epoch."""
    for tolerance, name in ((SAME_LOSS, "train_loss"), (SAME_VALIDATION, "validation_loss")):
        found, expected = ([epoch[name] for epoch in epochs_of(o)] for o in (together, alone))
        assert found == pytest.approx(expected, rel=tolerance), name


@pytest.mark.parametrize("model", SMALL)
def test_losses_are_those_of_one_process(
    model: str, pool: ProcessPool, waves: Path, tmp_path: Path
) -> None:
    """17 windows a step, which three processes do not divide, and few in the last step."""
    options = NO_DROPOUT[model] | {"batch_size": 17, "epochs": 2, "learning_rate": LEARNING_RATE}
    alone, together = tmp_path / "alone.safetensors", tmp_path / "together.safetensors"
    process = run(*command(model, waves, alone, **options))
    assert process.returncode == 0, process.stderr
    outcomes = pool.run(main_with_output, command(model, waves, together, **options))
    assert [status for status, _ in outcomes] == [0, 0, 0], outcomes
    assert "on each of 3 processes" in outcomes[0][1]
    assert outcomes[1][1] == outcomes[2][1] == ""
    assert_same_losses(together, alone)


def test_batch_norm_has_the_statistics_of_all_windows(
    pool: ProcessPool, waves: Path, tmp_path: Path
) -> None:
    options = NO_DROPOUT["PatchTST"] | {"epochs": 1, "learning_rate": LEARNING_RATE}
    alone, together = tmp_path / "alone.safetensors", tmp_path / "together.safetensors"
    process = run(*command("PatchTST", waves, alone, **options))
    assert process.returncode == 0, process.stderr
    pool.run(main_with_output, command("PatchTST", waves, together, **options))
    assert_same_losses(together, alone)
    one, several = load_file(alone), load_file(together)
    # The means move with biases whose gradients are rounding errors; the variances do not.
    names = [name for name in one if "running_var" in name]
    assert names
    for name in names:
        assert several[name].tolist() == pytest.approx(one[name].tolist(), rel=1e-4)


def test_loss_that_is_the_root_of_a_mean(pool: ProcessPool, waves: Path, tmp_path: Path) -> None:
    options = NO_DROPOUT["TFT"] | {"loss": "RMSE", "epochs": 2, "learning_rate": LEARNING_RATE}
    alone, together = tmp_path / "alone.safetensors", tmp_path / "together.safetensors"
    assert run(*command("TFT", waves, alone, **options)).returncode == 0
    pool.run(main_with_output, command("TFT", waves, together, **options))
    assert_same_losses(together, alone)


@pytest.mark.parametrize("model", ["PatchTST", "TFT"])
def test_gradient_checkpointing(model: str, pool: ProcessPool, waves: Path, tmp_path: Path) -> None:
    """A block that is computed again has gradients of its own before those of the parameters."""
    options = NO_DROPOUT[model] | {"epochs": 2, "learning_rate": LEARNING_RATE}
    alone, together = tmp_path / "alone.safetensors", tmp_path / "together.safetensors"
    for output in (alone, together):
        words = [*command(model, waves, output, **options), "--gradient-checkpointing"]
        if output == alone:
            assert run(*words).returncode == 0
        else:
            pool.run(main_with_output, words)
    assert_same_losses(together, alone)


def test_fewer_windows_than_processes(pool: ProcessPool, waves: Path, tmp_path: Path) -> None:
    options = NO_DROPOUT["PatchTST"] | {
        "batch_size": 2,
        "epochs": 1,
        "learning_rate": LEARNING_RATE,
    }
    alone, together = tmp_path / "alone.safetensors", tmp_path / "together.safetensors"
    assert run(*command("PatchTST", waves, alone, **options)).returncode == 0
    outcomes = pool.run(main_with_output, command("PatchTST", waves, together, **options))
    assert [status for status, _ in outcomes] == [0, 0, 0], outcomes
    assert_same_losses(together, alone)


def test_dropout_differs_between_processes_and_is_reproducible(
    pool: ProcessPool, waves: Path, tmp_path: Path
) -> None:
    outputs = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for output in outputs:
        pool.run(main_with_output, command("PatchTST", waves, output, epochs=1, dropout=0.5))
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


def test_other_options_on_one_process(pool: ProcessPool, waves: Path, tmp_path: Path) -> None:
    output = tmp_path / "model.safetensors"
    usual, other = (command("PatchTST", waves, output, **o) for o in ({}, {"batch_size": 5}))
    outcomes = pool.outcomes(main_with_output, [(usual,), (usual,), (other,)])
    for status, text in outcomes:
        assert status == 1
        assert "expected the same options and table on every process" in text
        assert "on process 3 of 3" in text
    assert not output.exists()


def test_another_table_on_one_process(pool: ProcessPool, waves: Path, tmp_path: Path) -> None:
    shorter = write_waves(tmp_path / "shorter.csv", rows=150)
    commands = [command("PatchTST", t, tmp_path / "m") for t in (waves, shorter, waves)]
    for status, text in pool.outcomes(main_with_output, [(words,) for words in commands]):
        assert status == 1 and "on process 2 of 3" in text


def test_output_that_cannot_be_written(pool: ProcessPool, waves: Path, tmp_path: Path) -> None:
    """Only the first process looks at it, and no other waits for that one."""
    words = command("PatchTST", waves, tmp_path / "nowhere" / "model.safetensors")
    (first, why), *others = pool.run(main_with_output, words)
    assert first == 1 and "nowhere" in why
    for status, text in others:
        assert status == 1 and "another process could not start" in text


def test_only_trainings_have_several_processes(
    pool: ProcessPool, waves: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model.safetensors"
    assert run(*command("PatchTST", waves, model, epochs=1)).returncode == 0
    for status, text in pool.run(main_with_output, ["evaluate", str(model), str(waves)]):
        assert status == 1 and "expected one process to evaluate, got 3" in text


def test_the_program_alone_refuses_torchrun(waves: Path, tmp_path: Path) -> None:
    process = subprocess.run(
        [executable(), *command("PatchTST", waves, tmp_path / "model")],
        capture_output=True,
        text=True,
        env={"WORLD_SIZE": "2", "RANK": "0", "TORCHELASTIC_RUN_ID": "none"},
    )
    assert process.returncode == 1
    assert "-m flash_attention.train" in process.stderr


def test_lost_process(waves: Path, tmp_path: Path) -> None:
    """The others stop, the files stay whole, and one process can go on from the checkpoint."""
    output, checkpoint = tmp_path / "model.safetensors", tmp_path / "run.checkpoint"
    options = NO_DROPOUT["TFT"] | {"epochs": 40, "learning_rate": LEARNING_RATE}
    words = [*command("TFT", waves, output, **options), "--checkpoint", str(checkpoint)]
    torchrun = start_torchrun(2, 0, words)
    seen = kill_after_an_epoch(torchrun, rank=1)
    _, rest = torchrun.communicate(timeout=100)
    assert torchrun.returncode != 0
    assert "one has ended or does not answer" in rest, seen + rest
    assert not output.exists()
    resumed = run("resume", checkpoint)
    assert resumed.returncode == 0, resumed.stderr
    alone = tmp_path / "alone.safetensors"
    assert run(*command("TFT", waves, alone, **options)).returncode == 0
    assert_same_losses(output, alone)


def test_restart_goes_on_from_the_checkpoint(waves: Path, tmp_path: Path) -> None:
    output, checkpoint = tmp_path / "model.safetensors", tmp_path / "run.checkpoint"
    options = NO_DROPOUT["TFT"] | {"epochs": 40, "learning_rate": LEARNING_RATE}
    words = [*command("TFT", waves, output, **options), f"--checkpoint={checkpoint}"]
    torchrun = start_torchrun(2, 1, words)
    kill_after_an_epoch(torchrun, rank=1)
    out, rest = torchrun.communicate(timeout=100)
    assert torchrun.returncode == 0, out + rest
    assert "Resuming the training of TFT" in out
    assert len(epochs_of(output)) == 40


def torchrun_store(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The store of a torchrun with one process, and the variables that point to it."""
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    names = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "RANK": "0"}
    names |= {"WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "none"}
    names |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    return store


@pytest.mark.parametrize("words", [["--checkpoint", "{}"], ["--checkpoint={}"]], ids=str)
def test_a_restart_goes_on_from_a_checkpoint_of_this_training(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Not from the file that another one has left: of other options, or at its end."""
    from flash_attention import train

    store = torchrun_store(monkeypatch)
    checkpoint = tmp_path / "run.checkpoint"
    checkpoint.write_bytes(b"of another training")
    given = ["TFT", "table.csv", *(word.format(checkpoint) for word in words)]
    assert train._after_restart(given) == given
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert train._after_restart(given) == given
    assert "restarted from the beginning" in capsys.readouterr().err
    checkpoint.write_bytes(b"of this one")
    assert train._after_restart(given) == ["resume", str(checkpoint)]
    checkpoint.unlink()
    assert train._after_restart(given) == given
    resumed = ["resume", str(checkpoint)]
    capsys.readouterr()
    assert train._after_restart(resumed) == resumed
    assert capsys.readouterr().err == ""
    del store
