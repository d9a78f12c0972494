"""The models under torch's wrappers for training on several processes."""

from __future__ import annotations

import pytest

from support.process_pool import ProcessPool
from support.trained_models import ROWS, SMALL, train, trained_by

pytestmark = pytest.mark.once

# Under torch's wrappers, each process sees its own windows: the batch norm of PatchTST and the
# delays of Autoformer, which are those of the whole batch otherwise, differ.
MIX_WINDOWS = ["Autoformer", "PatchTST"]
# FSDP2 takes parameters of one dtype; FEDformer's weights of modes are complex.
CASES = [
    (wrapper, name)
    for wrapper in ("ddp", "fsdp2")
    for name in sorted(SMALL)
    if (wrapper, name) != ("fsdp2", "FEDformer")
]


@pytest.mark.parametrize(("wrapper", "name"), [c for c in CASES if c[1] not in MIX_WINDOWS])
def test_losses_are_those_of_one_process(
    wrapper: str, name: str, two_processes: ProcessPool
) -> None:
    expected = train(name, lambda model: model, 0, ROWS)
    for losses in two_processes.run(trained_by, wrapper, name):
        # float32 sums of a few terms in another order, three steps of SGD.
        assert losses == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("wrapper", "name"), [c for c in CASES if c[1] in MIX_WINDOWS])
def test_models_that_mix_windows(wrapper: str, name: str, two_processes: ProcessPool) -> None:
    first, second = two_processes.run(trained_by, wrapper, name)
    assert first == second
    assert first[-1] < first[0]
