"""Mutation testing: injects the faults of faults.py one at a time; the tests must detect each.

    python tests/mutants/mutants.py            # all faults; prints a table
    python tests/mutants/mutants.py softcap    # faults with this word in their description

All faults are compiled into one build of a copy of the sources, in build/mutants. The environment
variable FLASH_FAULT activates one. Without it every test must pass, or failures would mean nothing.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from fault import Fault
from faults import FAULTS

ROOT = Path(__file__).resolve().parents[2]
COPY = ROOT / "build" / "mutants"
SOURCES = COPY / "source"
BUILD = COPY / "build"
PACKAGE = COPY / "package"
# A test that hangs has also detected the fault. The slowest one takes a minute by itself.
SECONDS = 600

# One variable, initialized when a library is loaded. It is defined in the kernels, for csrc_test,
# and in the operator's library, which everything above links. HEADER declares it in every namespace
# that includes a file with faults.
HEADER = """extern "C" __attribute__((visibility("default"))) int flash_fault;
"""
# Inserted after the line that starts the code of every module. It is a constant, so that
# torch.compile can trace it.
PYTHON_BEGINS = "from __future__ import annotations\n"
PYTHON_HEADER = "_FLASH_FAULT = __import__('os').environ.get('FLASH_FAULT')\n"
DEFINITION = """
#include <cstdlib>
extern "C" {
int flash_fault = std::getenv("FLASH_FAULT") ? std::atoi(std::getenv("FLASH_FAULT")) : 0;
}
"""


def injected(number: int, fault: Fault) -> str:
    """The text that replaces `fault.old`."""
    on = f"(flash_fault == {number})"
    if fault.layer == "python":
        on = f"(_FLASH_FAULT == '{number}')"
        expression = f"(({fault.new}) if {on} else ({fault.old}))"
    else:
        expression = f"({on} ? ({fault.new}) : ({fault.old}))"
    return fault.text.replace("ON", on) if fault.text else expression


def inject(faults: list[tuple[int, Fault]]) -> None:
    """Writes the copy of the sources; unchanged files keep their mtime, for incremental builds."""
    texts: dict[Path, str] = {}
    for number, fault in faults:
        path = ROOT / fault.file
        text = texts.get(path) or path.read_text()
        if text.count(fault.old) != 1:
            sys.exit(
                f"expected {fault.file} to hold {fault.old!r} once, got {text.count(fault.old)} "
                f"times; update the fault {fault.what!r} in tests/mutants"
            )
        texts[path] = text.replace(fault.old, injected(number, fault))
    for path in (ROOT / "csrc" / "dispatch.cpp", ROOT / "ops" / "build_info.cpp"):
        texts[path] = (texts.get(path) or path.read_text()) + DEFINITION
    for path, text in texts.items():
        if path.suffix == ".py":
            before, begins, code = text.partition(PYTHON_BEGINS)
            texts[path] = before + begins + PYTHON_HEADER + code
        else:
            texts[path] = f'#include "{COPY}/fault.h"\n{text}'
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    for name in filter(None, listed):
        source = ROOT / name
        if not source.is_file():
            continue
        text = texts.get(source)
        content = source.read_bytes() if text is None else text.encode()
        write_if_changed(SOURCES / name, content)
    write_if_changed(COPY / "fault.h", HEADER.encode())


def write_if_changed(path: Path, content: bytes) -> None:
    if path.is_file() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def build(jobs: int) -> None:
    """Compiles the copy and installs its Python packages to PACKAGE."""
    import torch

    if not (BUILD / "build.ninja").is_file():
        configure = ["cmake", "-S", SOURCES, "-B", BUILD, "-G", "Ninja"]
        configure += ["-DCMAKE_BUILD_TYPE=Release"]
        configure += [f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"]
        subprocess.run([str(word) for word in configure], check=True)
    subprocess.run(["cmake", "--build", BUILD, "-j", str(jobs)], check=True)
    # Like the installation of `make build`; PYTHONPATH puts it before the one in the environment.
    shutil.rmtree(PACKAGE, ignore_errors=True)
    modules = PACKAGE / "flash_attention"
    install = ["cmake", "--install", BUILD, "--component", "libraries", "--prefix", modules]
    subprocess.run([str(word) for word in install], check=True, stdout=subprocess.DEVNULL)
    for source, package in (
        ("ops/flash_attention", ""),
        ("models/python", "models"),
        ("models/train/python", "train"),
    ):
        shutil.copytree(
            SOURCES / source,
            modules / package,
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns("*.cpp", "*.h"),
        )


@dataclass
class Outcome:
    found_by: str
    seconds: float


def path_of(name: str) -> str:
    """The path of a Python test that is named by its file alone, "test_vmap.py::test_x"."""
    file, colons, test = name.partition("::")
    (path,) = (ROOT / "tests" / "python").rglob(file)
    return f"{path}{colons}{test}"


def run_tests(name: str, number: int) -> str:
    """Runs one set of tests with one fault; returns how it failed, or "" if it passed."""
    environment = os.environ | {
        "FLASH_FAULT": str(number),
        "PYTHONPATH": str(PACKAGE),
        "FLASH_TRAIN": str(BUILD / "models/flash_train"),
    }
    # Tests run in parallel, so waiting threads must not spin.
    environment["OMP_WAIT_POLICY"] = "passive"
    for variable in ("FLASH_ATTENTION_ISA", "ATEN_CPU_CAPABILITY"):
        environment.pop(variable, None)
    if name.startswith("test_"):
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
        command.append(path_of(name))
    else:
        binary, _, chosen = name.partition(":")
        command = [str(BUILD / "tests" / binary), "--gtest_brief=1", "--gtest_fail_fast"]
        command.append(f"--gtest_filter={chosen or '*'}")
    log = COPY / "logs" / f"{number}-{re.sub('[^a-zA-Z0-9_.]+', '-', name)}.txt"
    log.parent.mkdir(exist_ok=True)
    with log.open("w") as output:
        try:
            code = subprocess.run(
                command, cwd=ROOT, env=environment, stdout=output, stderr=output, timeout=SECONDS
            ).returncode
        except subprocess.TimeoutExpired:
            return "hangs"
    if code == 0:
        return ""
    return f"signal {-code}" if code < 0 else "fails"


def examine(number: int, fault: Fault) -> Outcome:
    begin = time.monotonic()
    for name in fault.by:
        how = run_tests(name, number)
        if how:
            return Outcome(f"{name} {how}", time.monotonic() - begin)
    return Outcome("", time.monotonic() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "words", nargs="*", help="only faults whose description contains one of these"
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=os.cpu_count() or 1,
        help="parallel compilers, then parallel tests",
    )
    args = parser.parse_args()
    faults = list(enumerate(FAULTS, start=1))
    inject(faults)
    build(args.jobs)
    chosen = [
        (number, fault)
        for number, fault in faults
        if not args.words or any(word in fault.what for word in args.words)
    ]
    names = sorted({name for _, fault in chosen for name in fault.by})
    missed = []
    with ThreadPoolExecutor(args.jobs) as pool:
        for name, how in zip(names, pool.map(lambda name: run_tests(name, 0), names), strict=True):
            if how:
                sys.exit(f"expected {name} to pass without a fault, but it {how}; see {COPY}/logs")
            print(f"{name} passes without a fault", flush=True)
        print(f"\n| {'#':>2} | layer  | fault | found by | s |\n|---:|---|---|---|---:|")
        for (number, fault), outcome in zip(
            chosen, pool.map(lambda pair: examine(*pair), chosen), strict=True
        ):
            found = outcome.found_by or "NOT FOUND"
            print(
                f"| {number:2} | {fault.layer} | {fault.what} | {found} | {outcome.seconds:.0f} |",
                flush=True,
            )
            if not outcome.found_by:
                missed.append(fault.what)
    print(f"\n{len(chosen) - len(missed)} of {len(chosen)} faults found")
    if missed:
        sys.exit(f"expected every fault to be found, got none for: {'; '.join(missed)}")


if __name__ == "__main__":
    main()
