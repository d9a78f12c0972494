"""Files and options crafted to crash, hang or exhaust memory are refused with an error message,
from Python and on the command line.

Each group runs in a process of its own, so that a crash fails only one test.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from support.forecaster_runs import run

pytestmark = pytest.mark.once

# All cases of a group together take about 3 s, most of it to import torch.
SECONDS = 120
# Memory limit beyond importing torch: enough to parse a JSON header of a few megabytes.
MEGABYTES = 512
# A path, some text, and a quotation of up to 200 bytes, each of which may be escaped.
LONGEST_MESSAGE = 2000

CHILD = """
import json, resource, sys
import torch
from flash_attention import models
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
outcomes = []
for call in json.load(sys.stdin):
    try:
        eval(call)
        outcomes.append("nothing")
    except Exception as error:
        outcomes.append(f"{type(error).__name__}: {error}")
used = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
json.dump({"outcomes": outcomes, "megabytes": used}, sys.stdout)
"""


def outcomes(calls: list[str]) -> list[str]:
    """The error of each expression as "ValueError: ...", or "nothing"."""
    process = subprocess.run(
        [sys.executable, "-c", CHILD],
        input=json.dumps(calls),
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert process.returncode == 0, (process.returncode, process.stderr[-2000:])
    result = json.loads(process.stdout)
    assert result["megabytes"] < MEGABYTES
    for message in result["outcomes"]:
        assert len(message) < LONGEST_MESSAGE, message[:300]
    return result["outcomes"]


def write(path: Path, header: bytes | str, data: bytes = b"") -> Path:
    text = header.encode() if isinstance(header, str) else header
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


DEPTH = 1_000_000
HEADERS = {
    "deep arrays": ('{"a":' + "[" * DEPTH + "]" * DEPTH + "}", "nested at most 64 deep"),
    "deep arrays cut off": ('{"a":' + "[" * DEPTH, "nested at most 64 deep"),
    "deep objects": (
        '{"a":' + '{"k":' * DEPTH + "1" + "}" * DEPTH + "}",
        "nested at most 64 deep",
    ),
    "deep metadata": (
        '{"__metadata__":{"model_class":"PatchTST","hyper_parameters":"'
        + '{\\"h\\":' * DEPTH
        + '"}}',
        "expected hyper_parameters as a JSON object nested at most 64 deep",
    ),
    "a name that is no UTF-8": (b'{"\xff\xfe":1}', "which is not JSON at byte 3"),
    "a long value": ('{"a":"' + "x" * DEPTH + '"}', "tensor a: expected the fields"),
    "strides that overflow": (
        '{"a":{"dtype":"F32","shape":[0,4611686018427387904,4],"data_offsets":[0,0]}}',
        "tensor a: expected data_offsets that span shape",
    ),
    "no hyperparameters": ("{}", "expected model_class and hyper_parameters"),
}


def test_malformed_headers_are_refused(tmp_path: Path) -> None:
    calls, expected = [], []
    for i, (header, message) in enumerate(HEADERS.values()):
        path = write(tmp_path / f"{i}.safetensors", header)
        calls.append(f"models.load({str(path)!r})")
        expected.append(message)
    for message, found in zip(expected, outcomes(calls), strict=True):
        assert found.startswith("ValueError: ") and message in found


def test_pipe_is_refused_without_blocking(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (found,) = outcomes([f"models.load({str(pipe)!r})"])
    assert found.startswith("ValueError: ") and "cannot be read" in found


# (model, option, value, message): a file of a few kilobytes that claims to hold a huge model.
CLAIMS = [
    ("PatchTST(h=2, input_size=16)", "encoder_layers", 10**9, "ample for the"),
    ("PatchTST(h=2, input_size=16)", "hidden_size", 65536, "ample for the"),
    ("PatchTST(h=2, input_size=16)", "linear_hidden_size", 10**9, "ample for the"),
    ("TFT(h=2, input_size=16, hidden_size=4, n_head=1)", "n_rnn_layers", 10**9, "ample for the"),
    ("TFT(h=2, input_size=16, hidden_size=4, n_head=1)", "tgt_size", 10**9, "ample for the"),
    ("Informer(h=2, input_size=16)", "decoder_layers", 10**7, "ample for the"),
    ("Autoformer(h=2, input_size=16)", "conv_hidden_size", 10**8, "ample for the"),
    ("FEDformer(h=2, input_size=16)", "input_size", 10**8, "ample for the"),
    ("iTransformer(h=2, input_size=16, n_series=1)", "d_ff", 10**8, "ample for the"),
    ("PatchTST(h=2, input_size=16)", "h", 2**63, "as a whole number, got 9223372036854775808"),
]


def test_hyperparameters_larger_than_the_file_are_refused(tmp_path: Path) -> None:
    models_made = sorted({model for model, *_ in CLAIMS})
    paths = {model: tmp_path / f"model{i}.safetensors" for i, model in enumerate(models_made)}
    saves = [f"models.{model}.save({str(path)!r})" for model, path in paths.items()]
    assert outcomes(saves) == ["nothing"] * len(saves)
    calls = []
    for i, (model, option, value, _) in enumerate(CLAIMS):
        with safe_open(paths[model], "pt") as file:
            metadata = file.metadata()
        parameters = json.dumps(json.loads(metadata["hyper_parameters"]) | {option: value})
        changed = tmp_path / f"changed{i}.safetensors"
        save_file(
            load_file(paths[model]),
            changed,
            metadata | {"hyper_parameters": parameters},
        )
        calls.append(f"models.load({str(changed)!r})")
    for (model, option, _, message), found in zip(CLAIMS, outcomes(calls), strict=True):
        assert found.startswith("ValueError: ") and message in found, (model, option, found)


def test_reading_a_file_does_not_allocate_tft_masks(tmp_path: Path) -> None:
    """TFT's constant mask of (input_size + h)^2 elements would take 40 GB here."""
    path, changed = tmp_path / "tft.safetensors", tmp_path / "changed.safetensors"
    save = f"models.TFT(h=2, input_size=8, hidden_size=4, n_head=1).save({str(path)!r})"
    assert outcomes([save]) == ["nothing"]
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    parameters = json.loads(metadata["hyper_parameters"]) | {"input_size": 100_000}
    save_file(load_file(path), changed, metadata | {"hyper_parameters": json.dumps(parameters)})
    assert outcomes([f"torch.ops.flash_models.read_model({str(changed)!r})"]) == ["nothing"]


TOO_LARGE = "expected options of a model of at most"
ARGUMENTS = [
    (
        "PatchTST(h=2, input_size=16, encoder_layers=10**9)",
        TOO_LARGE,
    ),
    ("PatchTST(h=2, input_size=16, hidden_size=2**31)", TOO_LARGE),
    ("PatchTST(h=2, input_size=16, hidden_size=2**62)", "as a whole number of at most 2^32"),
    ("PatchTST(h=2**63, input_size=16)", "as a whole number, got 9223372036854775808"),
    ("PatchTST(h=2, input_size=16, stride=10**30)", "as a whole number, got 1e+30"),
    ("PatchTST(h=2, input_size=16, output_size=2**62)", TOO_LARGE),
    ("TFT(h=2, input_size=16, n_rnn_layers=10**9)", TOO_LARGE),
    ("FEDformer(h=2, input_size=2**32)", TOO_LARGE),
    ("Informer(h=2, input_size=16, dropout=float('nan'))", "which is not JSON"),
    ("Informer(h=2, input_size=16, dropout=float('inf'))", "which is not JSON"),
    (
        "Autoformer(h=2, input_size=16, decoder_input_size_multiplier=1e300)",
        "expected decoder_input_size_multiplier to leave the decoder between 1 and input_size - 1",
    ),
    ("Autoformer(h=2, input_size=16, activation='x' * 10**6)", "expected activation"),
]


def test_constructor_arguments_are_refused() -> None:
    found = outcomes([f"models.{call}" for call, _ in ARGUMENTS])
    for (call, message), one in zip(ARGUMENTS, found, strict=True):
        assert one.startswith("ValueError: ") and message in one, (call, one)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["evaluate", "{deep}", "{table}"], "nested at most 64 deep"),
        (["predict", "{deep}", "{table}", "--forecast-csv", "{out}"], "nested at most 64 deep"),
        (["resume", "{deep}"], "nested at most 64 deep"),
        (
            ["evaluate", "{metadata}", "{table}"],
            "flash_train in its metadata as a JSON object",
        ),
        (["resume", "{metadata}"], "flash_train_run in its metadata as a JSON object"),
        (
            ["PatchTST", "{table}", "--target", "y", "--hidden-size", "2000000000"]
            + ["--horizon", "1", "--input-size", "8"],
            "of at most",
        ),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_command_line_refuses(tmp_path: Path, arguments: list[str], expected: str) -> None:
    deep = "[" * DEPTH + "]" * DEPTH
    metadata = json.dumps(
        {
            "__metadata__": dict.fromkeys(
                ("flash_train", "flash_train_run"), f'{{"settings":{deep}}}'
            )
        }
    )
    rows = "".join(f"2020-01-{day:02},{day}\n" for day in range(1, 31))
    places = {
        "deep": write(tmp_path / "deep.safetensors", f'{{"a":{deep}}}'),
        "metadata": write(tmp_path / "metadata.safetensors", metadata),
        "table": tmp_path / "table.csv",
        "out": tmp_path / "out.csv",
    }
    places["table"].write_text("date,y\n" + rows)
    process = run(*(argument.format(**places) for argument in arguments))
    assert process.returncode == 1, (process.returncode, process.stderr[-2000:])
    assert process.stderr.startswith("flash_train: ") and expected in process.stderr
    assert len(process.stderr) < LONGEST_MESSAGE
