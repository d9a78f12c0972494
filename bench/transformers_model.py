"""Language models of the package transformers, with and without `replace_sdpa`.

Made from a configuration, with random weights: nothing is downloaded. Shows that logits and
gradients are the same, that this project's kernels ran, and the ratio of time; both sides take
turns, pinned. Needs transformers, which .venv-neuralforecast has (bench/requirements.txt).
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass

import measure
import torch
from flash_attention import replace_sdpa
from torch import Tensor, nn

VERSION = "5.24.0"
VOCABULARY = 1000
# float32 and another order of summation, beside the largest number; a lost mask is 1e-1.
LARGEST_DIFFERENCE = 1e-4


def transformers() -> object:
    """The package, kept off the network."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        import transformers as package
    except ImportError as error:
        sys.exit(
            f"bench/transformers_model.py: expected transformers {VERSION} beside {sys.executable},"
            f" got {error!r}; install bench/requirements.txt"
        )
    return package


def gpt2(width: int, layers: int, heads: int, length: int) -> nn.Module:
    """GPT-2: as many heads of keys as of queries."""
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
    """Llama: rotary positions, and half as many heads of keys as of queries."""
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


def make(name: str, width: int, layers: int, heads: int, batch: int, length: int) -> Task:
    """A task with weights and tokens of one seed."""
    torch.manual_seed(0)
    model = MODELS[name](width, layers, heads, length).float().eval()
    return Task(model, torch.randint(VOCABULARY, (batch, length)))


def replaced(call: Callable[[], object]) -> object:
    with replace_sdpa():
        return call()


def used_operators(call: Callable[[], object]) -> set[str]:
    with torch.autograd.profiler.profile() as profile:
        call()
    return {event.name for event in profile.function_events}


def largest_relative_difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Of any tensor, beside the largest number of all."""
    size = max(t.abs().max().item() for t in theirs)
    return max((a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True)) / size


def compare(task: Task) -> tuple[float, float]:
    """How far logits and gradients are apart; exits where that is more than rounding."""
    operators = replaced(lambda: used_operators(task.forward))
    if "flash::attention" not in operators:
        sys.exit("bench/transformers_model.py: expected flash::attention to run, it did not")
    if "flash::attention" in used_operators(task.forward):
        sys.exit("bench/transformers_model.py: expected torch's operator back, it is not")
    logits = largest_relative_difference([replaced(task.forward)], [task.forward()])
    gradients = largest_relative_difference(replaced(task.gradients), task.gradients())
    if max(logits, gradients) > LARGEST_DIFFERENCE:
        sys.exit(
            f"bench/transformers_model.py: logits differ by {logits:.1e} and gradients by "
            f"{gradients:.1e} of the largest, expected at most {LARGEST_DIFFERENCE:.0e}"
        )
    return logits, gradients


def times(call: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Median seconds of (ours, torch's), in turns."""
    found = measure.interleaved({"ours": lambda: replaced(call), "torch": call}, rounds)
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
    args = parser.parse_args()
    measure.pin(args.threads)
    print("| model | length | logits | gradients | forward | training step |")
    print("|-------|-------:|-------:|----------:|--------:|--------------:|")
    for name in args.model:
        for length in args.lengths:
            task = make(name, args.width, args.layers, args.heads, args.batch, length)
            logits, gradients = compare(task)
            ratios = []
            for call in (task.forward, task.step):
                ours, torchs = times(call, args.rounds)
                ratios.append(f"{torchs / ours:.2f}x ({1e3 * torchs:.1f} -> {1e3 * ours:.1f} ms)")
            print(
                f"| {name} | {length} | {logits:.0e} | {gradients:.0e} "
                f"| {ratios[0]} | {ratios[1]} |",
                flush=True,
            )
    print(f"\nMeasured: {measure.describe(measure.machine())}.")


if __name__ == "__main__":
    main()
