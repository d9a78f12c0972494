"""The targets and the tables of all that a record says about the models."""

from __future__ import annotations

from collections.abc import Sequence

from bench.models import inference_tables, step_tables, targets
from bench.report.records import Record, Repeat
from bench.report.verdict import Line


def lines(record: Record, repeats: Sequence[Repeat] | None = None) -> list[Line]:
    """Every target, with the repeats of the record unless others are given."""
    kept = record.repeats if repeats is None else repeats
    return [*targets.lines(record.models, kept), *targets.forecast_lines(record.inference, kept)]


def training(record: Record) -> str:
    """Tables of training steps; empty if none were measured."""
    return step_tables.table(record.models, record.repeats) if record.models else ""


def inference(record: Record) -> str:
    """Table of forecasts; empty if none were measured."""
    return inference_tables.table(record.inference, record.repeats) if record.inference else ""


def text(record: Record) -> str:
    """All tables of the models."""
    return "\n\n".join(part for part in (training(record), inference(record)) if part)
