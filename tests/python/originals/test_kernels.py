"""The package as a kernel of Hugging Face's `kernels`, from a folder; nothing is downloaded."""

from __future__ import annotations

import importlib.metadata
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from project.test_docs import KERNELS, PAGES, ROOT, blocks

pytestmark = [pytest.mark.once, pytest.mark.filterwarnings("ignore")]

REPOSITORY = "somebody/flash-attention"
KERNEL = "dist/kernels/flash-attention"  # where `make kernels` writes it


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that packaging/write_kernel.py writes."""
    folder = tmp_path_factory.mktemp("clone") / KERNEL
    runpy.run_path(str(ROOT / "packaging" / "write_kernel.py"))["write_kernel"](folder)
    return folder


def run(code: str, kernel: Path) -> None:
    """Runs `code` in a process of its own, in which REPOSITORY is the folder."""
    own = {
        "HF_HUB_OFFLINE": "1",
        "LOCAL_KERNELS": f"{REPOSITORY}={KERNEL}",
        "PYTHONPATH": os.pathsep.join(
            [str(ROOT / "tests" / "python"), os.environ.get("PYTHONPATH", "")]
        ),
    }
    clone = str(kernel).removesuffix(KERNEL)
    command = [sys.executable, "-W", "ignore", "-c", code]
    subprocess.run(command, check=True, env=os.environ | own, cwd=clone)


# An installed package is hidden: only the one in the folder is found.
WITHOUT_THE_PACKAGE = f"""
import importlib.machinery, sys
from pathlib import Path

folder = Path.cwd().resolve()


class Hide:
    def find_spec(name, path, target=None):
        if name != "flash_attention":
            return None
        inside = [p for p in sys.path if folder in Path(p).resolve().parents]
        spec = importlib.machinery.PathFinder.find_spec(name, inside)
        if spec is None:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
        return spec


sys.meta_path.insert(0, Hide)
import kernels, torch
kernel = kernels.get_kernel("{REPOSITORY}", version=1)

import flash_attention
from flash_attention import flash_attn_interface

assert folder in Path(flash_attention.__file__).resolve().parents
for name in flash_attn_interface.__all__:
    expected = getattr(flash_attn_interface, name)
    assert name in ("install", "uninstall") or getattr(kernel, name) is expected
q = torch.randn(2, 9, 4, 8, requires_grad=True)
out = kernel.flash_attn_func(q, q, q, causal=True)
expected = flash_attention.standard_attention(*[q.transpose(1, 2)] * 3, causal=True)
torch.testing.assert_close(out.transpose(1, 2), expected)
ours, theirs = (torch.autograd.grad(x.square().sum(), q) for x in (out, expected))
torch.testing.assert_close(ours, theirs)
"""


def test_a_process_without_the_package_loads_the_one_in_the_folder(kernel: Path) -> None:
    run(WITHOUT_THE_PACKAGE, kernel)


def test_the_folder_has_a_variant_for_each_release_of_torch(kernel: Path) -> None:
    release = "".join(torch.__version__.split(".")[:2])
    (variant,) = (path for path in (kernel / "build").iterdir() if f"torch{release}-" in path.name)
    libraries = {path.name for path in variant.rglob("*.so")}
    assert libraries == {"libflash_kernels.so", "libflash_attention.so"}
    assert not (variant / "flash_attention" / "models").exists()


def test_an_installed_package_of_the_same_version_serves_the_kernel(
    kernel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import kernels
    from flash_attention.flash_attn_interface import flash_attn_varlen_func

    monkeypatch.setattr(sys, "path", list(sys.path))
    loaded = kernels.get_local_kernel(kernel)
    assert loaded.flash_attn_varlen_func is flash_attn_varlen_func


def test_an_installed_package_of_another_version_is_refused(
    kernel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import kernels

    monkeypatch.setattr(sys, "path", list(sys.path))
    copy = shutil.copytree(kernel, tmp_path / "kernel", ignore=shutil.ignore_patterns("*.so"))
    (metadata,) = copy.glob("build/*/*.dist-info/METADATA")
    version = importlib.metadata.version("flash_attention")
    text = metadata.read_text()
    metadata.write_text(text.replace(f"\nVersion: {version}\n", "\nVersion: 99.0\n"))
    with pytest.raises(ImportError, match=rf"expected version 99.0.*got {version} from"):
        kernels.get_local_kernel(copy)


# transformers asks for a release of `kernels` that is newer than the one in bench/requirements.txt,
# whose functions are the same; so the release that it sees is its own lower bound.
IN_TRANSFORMERS = f"""
import importlib.metadata

version_of = importlib.metadata.version
newer = {{"kernels": "0.18.2"}}
importlib.metadata.version = lambda name: newer.get(name) or version_of(name)

import torch
from support.tolerances import TRANSFORMERS_EAGER
from support.transformers_models import MODELS

for name in ("Llama", "Gemma 2"):
    found = []
    for implementation in ("{REPOSITORY}", "eager"):
        torch.manual_seed(0)
        model = MODELS[name]
        module = model.create(implementation, torch.float32)
        assert module.config._attn_implementation == implementation
        inputs = model.sample()
        out = module(**inputs)[model.output][inputs["attention_mask"].bool()]
        out.square().sum().backward()
        tokens = module.generate(**inputs, max_new_tokens=5, do_sample=False)
        found.append([out, *(p.grad for p in module.parameters() if p.grad is not None), tokens])
    for ours, eager in zip(*found, strict=True):
        error = (ours - eager).abs().max().item()
        assert error <= TRANSFORMERS_EAGER * max(1.0, eager.abs().max().item()), error
"""


def test_models_of_transformers_take_the_kernel_by_its_name(kernel: Path) -> None:
    run(IN_TRANSFORMERS, kernel)


def test_the_example_of_the_documentation_runs(kernel: Path) -> None:
    (example,) = (text for page in PAGES for _, text in blocks(page, "python") if KERNELS in text)
    run(example, kernel)
