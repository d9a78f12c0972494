"""Language models of the package transformers, with and without `replace_sdpa`.

    .venv-neuralforecast/bin/python bench/models/language_models.py

The models are made from a configuration with random weights; nothing is downloaded. Checks that
logits and gradients agree and that this project's kernels ran, and prints the ratio of the times,
measured in turns on pinned cores. Needs transformers, which bench/requirements.txt installs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from flash_attention import replace_sdpa
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from bench.common import host, timing

VERSION = "5.24.0"
VOCABULARY = 1000
# Relative to the largest element: another order of summation in float32; in bfloat16, some forty
# roundings of 2^-9 per layer. A lost mask gives 1e-1 and more.
LARGEST_DIFFERENCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def transformers() -> object:
    """The package, without network access."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        import transformers as package
    except ImportError as error:
        sys.exit(
            f"bench/models/language_models.py: expected transformers {VERSION} in the environment "
            f"of {sys.executable}, got {error!r}; install bench/requirements.txt"
        )
    return package


def gpt2(width: int, layers: int, heads: int, length: int) -> nn.Module:
    """GPT-2: multi-head attention."""
    package = transformers()
    config = package.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=length,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        attn_pdrop=0.0,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
        attn_implementation="sdpa",
    )
    return package.GPT2LMHeadModel(config)


def llama(width: int, layers: int, heads: int, length: int) -> nn.Module:
    """Llama: rotary positions and grouped-query attention, two queries per key head."""
    package = transformers()
    config = package.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 2),
        max_position_embeddings=length,
        attn_implementation="sdpa",
    )
    return package.LlamaForCausalLM(config)


MODELS: dict[str, Callable[..., nn.Module]] = {"gpt2": gpt2, "llama": llama}


@dataclass
class Task:
    """A model and a batch of tokens."""

    model: nn.Module
    tokens: Tensor
    attention_mask: Tensor | None = None

    def forward(self) -> Tensor:
        """Logits, without gradients."""
        with torch.no_grad():
            return self.model(self.tokens, attention_mask=self.attention_mask).logits

    def step(self) -> Tensor:
        """Loss and gradients of next-token prediction."""
        self.model.zero_grad()
        loss = self.model(self.tokens, attention_mask=self.attention_mask, labels=self.tokens).loss
        loss.backward()
        return loss.detach()

    def gradients(self) -> list[Tensor]:
        self.step()
        return [p.grad.clone() for p in self.model.parameters()]


def make(args: argparse.Namespace, name: str, length: int) -> Task:
    """A task whose weights and tokens come from one seed."""
    torch.manual_seed(0)
    model = MODELS[name](args.width, args.layers, args.heads, length).to(DTYPES[args.dtype]).eval()
    return Task(model, torch.randint(VOCABULARY, (args.batch, length)))


def replaced(call: Callable[[], object]) -> object:
    with replace_sdpa():
        return call()


def used_operators(call: Callable[[], object]) -> set[str]:
    with torch.autograd.profiler.profile() as profile:
        call()
    return {event.name for event in profile.function_events}


def largest_relative_difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Over all tensors, relative to the largest element."""
    size = max(t.abs().max().item() for t in theirs)
    return max((a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True)) / size


def compare(task: Task, prefill: bool) -> tuple[float, float]:
    """Differences of logits and gradients (0 for prefill); exits if they exceed rounding."""
    operators = replaced(lambda: used_operators(task.forward))
    if "flash::attention" not in operators:
        sys.exit(
            "bench/models/language_models.py: expected flash::attention to run, got torch's"
            " operator"
        )
    if "flash::attention" in used_operators(task.forward):
        sys.exit(
            "bench/models/language_models.py: expected torch's operator after replace_sdpa,"
            " got flash::attention"
        )
    logits = largest_relative_difference([replaced(task.forward)], [task.forward()])
    gradients = 0.0
    if not prefill:
        gradients = largest_relative_difference(replaced(task.gradients), task.gradients())
    allowed = LARGEST_DIFFERENCE[task.model.dtype]
    if max(logits, gradients) > allowed:
        sys.exit(
            f"bench/models/language_models.py: logits differ by {logits:.1e} and gradients by "
            f"{gradients:.1e} of the largest, expected at most {allowed:.0e}"
        )
    return logits, gradients


def times(call: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Median seconds of (ours, torch's), timed in turns."""
    found = timing.interleaved({"ours": lambda: replaced(call), "torch": call}, rounds)
    return statistics.median(found["ours"]), statistics.median(found["torch"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=MODELS, nargs="+", default=list(MODELS))
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--prefill", action="store_true", help="the forward alone")
    args = parser.parse_args()
    host.pin(args.threads)
    columns = ["forward"] if args.prefill else ["forward", "training step"]
    print(f"| model | length | logits | gradients | {' | '.join(columns)} |")
    print("|---|---:|---:|---:|" + "---:|" * len(columns))
    for name in args.model:
        for length in args.lengths:
            task = make(args, name, length)
            logits, gradients = compare(task, args.prefill)
            ratios = []
            for call in (task.forward,) if args.prefill else (task.forward, task.step):
                ours, torchs = times(call, args.rounds)
                ratios.append(f"{torchs / ours:.2f}x ({1e3 * torchs:.1f} -> {1e3 * ours:.1f} ms)")
            print(
                f"| {name} | {length} | {logits:.0e} | {gradients:.0e} | {' | '.join(ratios)} |",
                flush=True,
            )
    print(f"\nMeasured: {host.describe(host.machine())}.")


if __name__ == "__main__":
    main()
