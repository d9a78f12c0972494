"""Fixtures for all tests: instruction sets, torch's global state, and the allowed skips."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator

# OpenMP reads these while torch is loaded. Several test processes share the cores, so waiting
# threads must not spin: some tests take fifty times as long beside one that does. Calls use two
# threads, whatever the number of cores, unless a test asks for more.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OMP_NUM_THREADS", "2")

import pytest  # noqa: E402
import torch  # noqa: E402

from support import model_fixtures, reference  # noqa: E402
from support.instruction_sets import (  # noqa: E402
    SUPPORTED,
    TESTED,
    TESTED_WITH_FLOAT_PARTS,
    TESTED_WITH_TILES,
    active,
    kernels,
)
from support.pairwise import pairwise_specs  # noqa: E402
from support.problems import variant_pairs  # noqa: E402

# Every allowed reason to skip a test, and the maximum number of such skips per run.
ALLOWED_SKIPS = {
    "the comparison needs AVX2": 0 if "avx2" in SUPPORTED else 2,
    "built without Cairo": 1,
    # Each model's training step, and the bias of one output of four.
    "the products are those of torch": 10 if "scalar" in TESTED else 0,
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--all-pairs",
        action="store_true",
        help="also test every pair of option variants in a problem of its own",
    )
    parser.addoption(
        "--processes",
        type=int,
        help="run tests of distributed attention on this number of processes, not on 2 and on 4",
    )


@pytest.hookimpl(trylast=True)  # the parameter added last is the innermost loop
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs every test on each instruction set, unless it is marked `once`."""
    if "pairwise_spec" in metafunc.fixturenames:
        specs = pairwise_specs()
        if metafunc.config.getoption("all_pairs"):
            specs |= variant_pairs()
        metafunc.parametrize("pairwise_spec", specs.values(), ids=specs.keys())
    if metafunc.definition.get_closest_marker("once") is None:
        isas = TESTED
        for marker, more in (
            ("tiles", TESTED_WITH_TILES),
            ("float_parts", TESTED_WITH_FLOAT_PARTS),
        ):
            if metafunc.definition.get_closest_marker(marker) is not None:
                isas = more
        metafunc.parametrize("isa", isas, indirect=True)


@pytest.fixture(autouse=True)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """The active instruction set of this test."""
    name = getattr(request, "param", TESTED[0])
    if name == TESTED[0]:  # later instruction sets of the same test reuse the references
        reference.MEMO.clear()
    with kernels(name):
        yield name
        assert active() == name, "a test changed the instruction set"


@pytest.fixture(autouse=True)
def unchanged_global_state() -> Iterator[None]:
    """Seeds every test the same, and checks that it leaves torch's global state unchanged."""
    torch.manual_seed(0)
    before = (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled())
    yield
    after = (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled())
    assert after == before, "a test changed the number of threads, the default dtype or grad mode"


@pytest.fixture(params=sorted(model_fixtures.TYPICAL))
def typical(request: pytest.FixtureRequest) -> model_fixtures.Fixture:
    """One recorded case of each model."""
    return model_fixtures.load(model_fixtures.TYPICAL[request.param])


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fails a run with a skip for an unknown reason, or with too many skips for a known one."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:  # an xdist worker: its reports go to the controller
        return
    skipped: Counter[str] = Counter()
    for report in reporter.stats.get("skipped", ()):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        known = [text for text in ALLOWED_SKIPS if reason.startswith(text)]
        skipped[known[0] if known else reason] += 1
    for reason, count in skipped.items():
        allowed = ALLOWED_SKIPS.get(reason, 0)
        if count > allowed:
            reporter.write_line(
                f"expected at most {allowed} tests to be skipped because {reason!r}, got {count}",
                red=True,
            )
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
