"""Models of the package transformers with this package's attention, "sdpa" and "eager".

    .venv-neuralforecast/bin/python -m bench.models.attention_implementations

Training step, prefill and decode: the time, measured in turns on pinned cores, and the peak memory.
The models have random weights; nothing is downloaded. Before a part is measured, its results are
compared. Needs transformers, which bench/requirements.txt installs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from flash_attention.transformers import NAME, register
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from bench.common import allocations, formatting, host, timing
from bench.models.language_models import DTYPES, VOCABULARY, transformers

IMPLEMENTATIONS = {"ours": NAME, "sdpa": "sdpa", "eager": "eager"}
PARTS = ("step", "prefill", "decode")
# Of the norm of all results: another order of summation, and in bfloat16 roundings of 2^-9, which
# send some tokens of gpt-oss to other experts (6e-2). A lost mask gives several times more.
LARGEST_DIFFERENCE = {torch.float32: 1e-4, torch.bfloat16: 1e-1}
# Of one call of decode, so that it takes long enough to be timed.
DECODED_TOKENS = 4


def decoder(args: argparse.Namespace, length: int, **more: Any) -> dict[str, Any]:
    """Options of a decoder: heads of 64, four queries per key head."""
    heads = args.width // 64
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": args.width,
        "intermediate_size": 3 * args.width,
        "num_hidden_layers": args.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": max(1, heads // 4),
        "head_dim": 64,
        "max_position_embeddings": 2 * length,
    } | more


def encoder(args: argparse.Namespace, length: int) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": args.width,
        "intermediate_size": 4 * args.width,
        "num_hidden_layers": args.layers,
        "num_attention_heads": args.width // 64,
        "max_position_embeddings": length,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }


def t5(args: argparse.Namespace, length: int) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "d_model": args.width,
        "d_kv": 64,
        "d_ff": 4 * args.width,
        "num_heads": args.width // 64,
        "num_layers": args.layers,
        "dropout_rate": 0.0,
        "decoder_start_token_id": 0,
    }


ALTERNATING = ("sliding_attention", "full_attention")


def gemma2(args: argparse.Namespace, length: int) -> dict[str, Any]:
    layers = [ALTERNATING[layer % 2] for layer in range(args.layers)]
    return decoder(args, length, sliding_window=1024, layer_types=layers)


def gpt_oss(args: argparse.Namespace, length: int) -> dict[str, Any]:
    layers = [ALTERNATING[layer % 2] for layer in range(args.layers)]
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    return decoder(args, length, sliding_window=128, layer_types=layers, **experts)


@dataclass(frozen=True)
class Kind:
    """Classes and options of a model.

    padded: a batch of four sequences of unequal lengths, else of one.
    longest: longer ones take minutes per call, or in T5 gigabytes for each bias.
    """

    model: str
    config: str
    options: Callable[[argparse.Namespace, int], dict[str, Any]]
    parts: tuple[str, ...] = PARTS
    padded: bool = False
    longest: int | None = None


KINDS = {
    "Llama": Kind("LlamaForCausalLM", "LlamaConfig", decoder),
    "Mistral, window 1024": Kind(
        "MistralForCausalLM",
        "MistralConfig",
        lambda args, length: decoder(args, length, sliding_window=1024),
    ),
    "Gemma 2": Kind("Gemma2ForCausalLM", "Gemma2Config", gemma2),
    "gpt-oss": Kind("GptOssForCausalLM", "GptOssConfig", gpt_oss),
    "BERT, padded": Kind(
        "BertForMaskedLM", "BertConfig", encoder, ("step", "prefill"), padded=True, longest=2048
    ),
    "T5": Kind("T5ForConditionalGeneration", "T5Config", t5, ("step", "prefill"), longest=2048),
}


def create(kind: Kind, args: argparse.Namespace, length: int, dtype: str, name: str) -> nn.Module:
    """The same weights for every implementation."""
    package: Any = transformers()
    torch.manual_seed(0)
    config = getattr(package, kind.config)(**kind.options(args, length))
    model = getattr(package, kind.model)._from_config(config, attn_implementation=name)
    return model.to(DTYPES[dtype]).eval()


class Task:
    """A model and its batch."""

    def __init__(self, kind: Kind, model: nn.Module, length: int) -> None:
        torch.manual_seed(1)
        batch = 4 if kind.padded else 1
        tokens = torch.randint(1, VOCABULARY, (batch, length))
        self.model = model
        self.inputs = {"input_ids": tokens}
        if kind.padded:
            lengths = torch.tensor([length, 3 * length // 4, length // 2, length // 4])
            self.inputs["attention_mask"] = (torch.arange(length) < lengths[:, None]).long()
        self.decodes = "decode" in kind.parts
        self._length = length
        self._cache: Any = None

    def step(self) -> list[Tensor]:
        """The gradients of a training step."""
        self.model.zero_grad(set_to_none=True)
        self.model(**self.inputs, labels=self.inputs["input_ids"]).loss.backward()
        return [p.grad for p in self.model.parameters() if p.grad is not None]

    def prefill(self) -> list[Tensor]:
        """Logits, and for a decoder the cache."""
        options = {"use_cache": True, "logits_to_keep": 1} if self.decodes else {}
        inputs = self.inputs
        if self.model.config.is_encoder_decoder:
            inputs = inputs | {"decoder_input_ids": inputs["input_ids"]}
        with torch.no_grad():
            out = self.model(**inputs, **options)
        self._cache = out.past_key_values if self.decodes else None
        return [out.logits]

    def decode(self) -> list[Tensor]:
        """Logits of DECODED_TOKENS more tokens, one after the other."""
        if self._cache is None:
            self.prefill()
        token, logits = self.inputs["input_ids"][:, :1], []
        with torch.no_grad():
            for _ in range(DECODED_TOKENS):
                out = self.model(input_ids=token, cache=self._cache, use_cache=True)
                logits.append(out.logits)
        return logits


def tasks_of(kind: Kind, args: argparse.Namespace, length: int, dtype: str) -> dict[str, Task]:
    """A task for each implementation that the model has, "eager" only up to --eager-up-to.

    They share the weights, so that none has them in a better place.
    """
    tasks: dict[str, Task] = {}
    for name, implementation in IMPLEMENTATIONS.items():
        if name == "eager" and length > args.eager_up_to:
            continue
        try:
            model = create(kind, args, length, dtype, implementation)
        except ValueError:  # gpt-oss has no "sdpa": torch's function has no sinks
            if name != "sdpa":
                raise
            continue
        if tasks:
            weights = tasks["ours"].model.parameters()
            for mine, shared in zip(model.parameters(), weights, strict=True):
                mine.data = shared.data
        tasks[name] = Task(kind, model, length)
    return tasks


def check(results: dict[str, list[Tensor]], dtype: str) -> None:
    """Exits if the implementations differ by more than rounding."""

    def flat(found: list[Tensor]) -> Tensor:
        return torch.cat([x.flatten().double() for x in found])

    ours = flat(results["ours"])
    for name, found in results.items():
        theirs = flat(found)
        difference = float((ours - theirs).norm() / theirs.norm())
        if not difference <= LARGEST_DIFFERENCE[DTYPES[dtype]]:
            sys.exit(
                f"bench/models/attention_implementations.py: expected the results of {name} up to "
                f"rounding, got a difference of {difference:.1e} of their norm"
            )


def measure(tasks: dict[str, Task], part: str, args: argparse.Namespace, dtype: str) -> list[str]:
    """Our time and that of the others as its multiples with quartiles; our peak and theirs."""
    calls: dict[str, Callable[[], list[Tensor]]] = {
        name: getattr(task, part) for name, task in tasks.items()
    }
    # Rows of padding have no meaning.
    results = {name: call() for name, call in calls.items()}
    kept = tasks["ours"].inputs.get("attention_mask")
    if kept is not None and part == "prefill":
        results = {name: [x[kept.bool()] for x in found] for name, found in results.items()}
    check(results, dtype)
    peaks = {}
    if not args.no_memory and part != "decode":  # which keeps more than it returns, in the cache
        peaks = {
            name: formatting.bytes_text(allocations.peak_memory(call))
            for name, call in calls.items()
        }
    seconds = timing.interleaved(calls, args.rounds, args.seconds)
    samples = sorted(seconds["ours"])
    per_call = DECODED_TOKENS if part == "decode" else 1
    cells = [formatting.seconds_text(samples[len(samples) // 2] / per_call)]
    for name in ("sdpa", "eager"):
        if name not in seconds:
            cells.append("-")
            continue
        low, median, high = timing.quartiles_of_ratio(seconds[name], seconds["ours"])
        cells.append(f"{median:.2f}x ({low:.2f}-{high:.2f})")
    return cells + [peaks.get(name, "-") for name in IMPLEMENTATIONS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=KINDS, nargs="+", default=list(KINDS))
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("--dtypes", choices=DTYPES, nargs="+", default=list(DTYPES))
    parser.add_argument("--parts", choices=PARTS, nargs="+", default=list(PARTS))
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--seconds", type=float, default=20.0, help="limit for one row")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--eager-up-to", type=int, default=2048, help="its longest sequence")
    parser.add_argument("--no-memory", action="store_true")
    args = parser.parse_args()
    host.pin(args.threads)
    transformers()
    register()
    header = ["model", "dtype", "length", "part", "time", "sdpa", "eager"]
    header += ["peak memory", "sdpa", "eager"]
    rows = []
    for name in args.model:
        kind = KINDS[name]
        for length in args.lengths:
            if kind.longest is not None and length > kind.longest:
                continue
            for dtype in args.dtypes:
                tasks = tasks_of(kind, args, length, dtype)
                for part in kind.parts:
                    if part in args.parts:
                        cells = measure(tasks, part, args, dtype)
                        rows.append([name, dtype, str(length), part, *cells])
                        print("; ".join(rows[-1]), file=sys.stderr, flush=True)
    print(formatting.table(header, rows, left=4))
    print(
        f"\nMeasured: {host.describe(host.machine())}; width {args.width}, {args.layers} layers. "
        "sdpa and eager: multiples of the time of this package, median and quartiles; decode: one "
        "token after as many."
    )


if __name__ == "__main__":
    main()
