"""What the fuzzer calls besides the operator: packed sequences, the cache, the drop-in, and second
derivatives.

Each function draws a case and computes its truth, and returns the check of the kernels in use.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import flash_attention
import torch
from checks import Judge, largest_difference
from fuzz_draws import WIDTHS, axes, draw_heads, draw_spec, maybe, window
from problems import NARROW, Problem, compute_dtype, make_problem
from reference import NAMES, attention
from sdpa_calls import Call, Truth, assert_close_to_truth
from tolerances import (
    FLOAT32_ROUNDING_UNITS_LARGEST,
    FLOAT64_ABSOLUTE,
    FUZZED_SLACK,
    NARROW_ABSOLUTE,
    SECOND_GRADIENT_ROUNDINGS,
    UNIT_ROUNDOFF,
)
from torch import Tensor

Check = Callable[[], None]

LENGTHS = (0, 1, 1, 2, 3, 5, 7, 8, 9, 16, 17, 24, 25, 33, 48, 64, 65, 100, 130)
# A second derivative by the definition takes some twenty matrices of scores.
SHARE_OF_SECOND = 0.1


def rounding_of(dtype: torch.dtype, expected: Tensor) -> Tensor:
    """What rounding to `dtype` adds to an error, once for each number."""
    if dtype not in NARROW:
        return torch.zeros(())
    return UNIT_ROUNDOFF[dtype] * expected.abs() + NARROW_ABSOLUTE[dtype]


def score_options(draw: random.Random) -> dict[str, Any]:
    return {
        "window": maybe(draw, 0.3, window(draw)),
        "softcap": maybe(draw, 0.2, draw.choice([0.4, 1.5, 20.0]), 0.0),
        "scale": maybe(draw, 0.2, draw.choice([0.0, -0.4, 0.1, 2.0])),
    }


def heads_first(rows: Tensor) -> Tensor:
    """[T, H, D] as [1, H, T, D]."""
    return rows.transpose(0, 1).unsqueeze(0)


# --- packed sequences ---------------------------------------------------------------------------


def packed(draw: random.Random, dtype: torch.dtype, seed: int) -> Check:
    generator = torch.Generator().manual_seed(seed)
    heads = draw_heads(draw)
    count = draw.choice([0, 1, 2, 3, 5])
    lengths = [(draw.choice(LENGTHS), draw.choice(LENGTHS)) for _ in range(count)]
    if lengths and draw.random() < 0.2:
        lengths[0] = (draw.choice([1, 3, 8]), draw.choice([1025, 2048, 2100]))
    width, value_width = draw.choice(WIDTHS[:16]), draw.choice(WIDTHS[:16])
    options = {
        **score_options(draw),
        "causal": draw.random() < 0.4,
        "block_size": draw.choice([64, 1, 7, 256]),
        "use_simd": draw.random() < 0.9,
    }

    def tensor(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    def rows(length: int, row_heads: int, row_width: int) -> Tensor:
        if draw.random() < 0.3:
            return tensor(row_heads, length, row_width).transpose(0, 1)
        return tensor(length, row_heads, row_width)

    queries, keys = [q for q, _ in lengths], [k for _, k in lengths]
    inputs = {
        "query": rows(sum(queries), heads["heads"], width),
        "key": rows(sum(keys), heads["key_heads"], width),
        "value": rows(sum(keys), heads["value_heads"], value_width),
    }
    for name in ("alibi_slopes", "sinks"):
        shape = draw.choice([None, None, (heads["heads"],), (count, heads["heads"])])
        if shape is not None:
            inputs[name] = tensor(*shape).abs() / 4 if name == "alibi_slopes" else tensor(*shape)
    grad_out = tensor(sum(queries), heads["heads"], value_width)
    judges = []
    rows_of = {
        "query": inputs["query"].split(queries) if lengths else (),
        "key": inputs["key"].split(keys) if lengths else (),
        "value": inputs["value"].split(keys) if lengths else (),
    }
    for n, length in enumerate(queries):
        own = {name: heads_first(parts[n]) for name, parts in rows_of.items()}
        for name in inputs.keys() - own.keys():
            own[name] = inputs[name][n] if inputs[name].dim() == 2 else inputs[name]
        begin = sum(queries[:n])
        problem = Problem(
            {name: own[name] for name in inputs},
            {**options, "dropout": 0.0},
            tuple(inputs),
            heads_first(grad_out[begin : begin + length]),
            torch.zeros(1, heads["heads"], length, dtype=compute_dtype(dtype)),
        )
        judges.append(Judge(problem, FUZZED_SLACK))

    def cuts(of: list[int]) -> Tensor:
        offsets = torch.tensor([0, *of]).cumsum(0)
        return offsets.int() if seed % 2 else offsets

    def check() -> None:
        leaves = {n: t.detach().requires_grad_() for n, t in inputs.items()}
        out = flash_attention.varlen_attention(
            **leaves, cu_seqlens_q=cuts(queries), cu_seqlens_k=cuts(keys), **options
        )
        grads = torch.autograd.grad(out, list(leaves.values()), grad_out)
        found = {NAMES[n]: g for n, g in zip(leaves, grads, strict=True)}
        with torch.no_grad():
            again = flash_attention.varlen_attention(
                **inputs, cu_seqlens_q=cuts(queries), cu_seqlens_k=cuts(keys), **options
            )
        assert torch.equal(again, out)
        for n, judge in enumerate(judges):
            query = slice(sum(queries[:n]), sum(queries[: n + 1]))
            key = slice(sum(keys[:n]), sum(keys[: n + 1]))
            parts = {"out": out[query], "dq": found["dq"][query]}
            parts |= {name: found[name][key] for name in ("dk", "dv")}
            results = {name: heads_first(x.detach()) for name, x in parts.items()}
            for name in ("alibi_slopes", "sinks"):
                if name in inputs and inputs[name].dim() == 2:
                    results[NAMES[name]] = found[NAMES[name]][n]
            judge.assert_close(results)
        for name in ("alibi_slopes", "sinks"):
            if name in inputs and inputs[name].dim() == 1 and judges:
                assert_sum(NAMES[name], found[NAMES[name]], judges, dtype)

    return check


def assert_sum(name: str, actual: Tensor, judges: list[Judge], dtype: torch.dtype) -> None:
    """A gradient that sequences share is the sum of theirs."""
    expected = torch.stack([judge.truth[name] for judge in judges]).sum(0)
    unit = FLOAT32_ROUNDING_UNITS_LARGEST * UNIT_ROUNDOFF[compute_dtype(dtype)]
    units = sum(judge.rounding[name].largest for judge in judges)
    allowed = FUZZED_SLACK * (unit * units + FLOAT64_ABSOLUTE) + rounding_of(dtype, expected)
    excess = (actual.double() - expected).abs() - allowed
    assert excess.max().item() <= 0, f"{name}: {excess.max().item():.3g} too far"


# --- the cache ----------------------------------------------------------------------------------


def cached(draw: random.Random, dtype: torch.dtype, seed: int) -> Check:
    generator = torch.Generator().manual_seed(seed)
    heads = draw_heads(draw)
    batch = draw.choice([1, 1, 2, 3])
    width, value_width = draw.choice(WIDTHS[:16]), draw.choice(WIDTHS[:16])
    prompt = draw.choice([1, 2, 17, 40, 63, 64, 65, 1030, 2046])
    if prompt > 1000:
        width, value_width, batch = min(width, 9), min(value_width, 9), 1
    options = score_options(draw)

    def tensor(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    numbers = {}
    for name in ("alibi_slopes", "sinks"):
        shape = draw.choice([None, None, (heads["heads"],), (batch, heads["heads"])])
        if shape is not None:
            numbers[name] = tensor(*shape).abs() / 4 if name == "alibi_slopes" else tensor(*shape)
    steps = [prompt, *(draw.choice([1, 1, 1, 2, 5, 8, 9]) for _ in range(3))]
    capacity = sum(steps) + draw.choice([0, 3])
    lengths = [0] * batch
    kept = [(tensor(heads["key_heads"], 0, width), tensor(heads["value_heads"], 0, value_width))]
    kept *= batch
    # What is done to a cache, one step after the other, and what its attention must then be.
    script: list[dict[str, Any]] = []
    for positions in steps:
        step: dict[str, Any] = {"truncate": None, "counts": None, "judges": {}}
        if script and draw.random() < 0.15:
            step["truncate"] = draw.randrange(max(lengths) + 1)
            kept = [(k[:, : step["truncate"]], v[:, : step["truncate"]]) for k, v in kept]
        counts = [positions] * batch
        if draw.random() < 0.4:
            counts = [draw.randint(0, positions) for _ in range(batch)]
            step["counts"] = torch.tensor(counts)
        step["key"] = tensor(batch, heads["key_heads"], positions, width)
        step["value"] = tensor(batch, heads["value_heads"], positions, value_width)
        step["query"] = tensor(batch, heads["heads"], positions, width)
        kept = [
            (torch.cat([k, step["key"][b, :, :n]], 1), torch.cat([v, step["value"][b, :, :n]], 1))
            for b, ((k, v), n) in enumerate(zip(kept, counts, strict=True))
        ]
        lengths = [k.size(1) for k, _ in kept]
        longest = max(lengths)
        step["bias"] = None
        if draw.random() < 0.3:
            letters = {"B": batch, "H": heads["heads"], "L": positions, "S": longest, "1": 1}
            step["bias"] = tensor(*(letters[letter] for letter in axes(draw)))
        step["is_asked"] = positions < 100  # not of a long prompt, which is no decoding
        for b, (n, length) in enumerate(zip(counts, lengths, strict=True)):
            if n == 0 or not step["is_asked"]:
                continue
            own = {
                "query": step["query"][b : b + 1, :, :n],
                "key": kept[b][0].unsqueeze(0),
                "value": kept[b][1].unsqueeze(0),
            }
            if step["bias"] is not None:
                full = step["bias"].expand(batch, heads["heads"], positions, longest)
                own["bias"] = full[b : b + 1, :, :n, :length]
            own |= {k: x[b] if x.dim() == 2 else x for k, x in numbers.items()}
            grad_out = torch.zeros(1, heads["heads"], n, value_width, dtype=dtype)
            grad_lse = torch.zeros(1, heads["heads"], n, dtype=compute_dtype(dtype))
            call_options = {**options, "causal": True, "dropout": 0.0}
            problem = Problem(own, call_options, (), grad_out, grad_lse)
            step["judges"][b] = Judge(problem, FUZZED_SLACK)
        step["lengths"] = lengths
        script.append(step)

    def check() -> None:
        cache = flash_attention.KeyValueCache(
            batch,
            heads["key_heads"],
            capacity,
            width,
            value_dim=value_width,
            value_heads=heads["value_heads"],
            dtype=dtype,
        )
        for step in script:
            if step["truncate"] is not None:
                cache.truncate(step["truncate"])
            cache.append(step["key"], step["value"], step["counts"])
            assert cache.lengths.tolist() == step["lengths"]
            if not step["is_asked"]:
                continue
            out = cache.attention(
                step["query"], step["counts"], bias=step["bias"], **options, **numbers
            )
            for b, judge in step["judges"].items():
                n = judge.problem.inputs["query"].size(2)
                judge.assert_close({"out": out[b : b + 1, :, :n]})

    return check


# --- the drop-in --------------------------------------------------------------------------------


def drop_in(draw: random.Random, dtype: torch.dtype, seed: int) -> Check:
    generator = torch.Generator().manual_seed(seed)
    lead = draw.choice([(), (1,), (3,), (2, 1), (2, 3), (2, 2, 2)])
    queries, keys = (draw.choice(LENGTHS[1:]) for _ in range(2))
    if draw.random() < 0.15:
        queries, keys = draw.choice([1, 4, 8]), draw.choice([1024, 2049])
    width, value_width = draw.choice(WIDTHS[:16]), draw.choice(WIDTHS[:16])
    enable_gqa = len(lead) >= 2 and draw.random() < 0.4
    key_lead = lead
    if enable_gqa:
        key_lead = (
            *lead[:-1],
            draw.choice([n for n in range(1, lead[-1] + 1) if lead[-1] % n == 0]),
        )

    def leaf(*shape: int) -> Tensor:
        x = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        return x.requires_grad_()

    call = Call(
        leaf(*lead, queries, width),
        leaf(*key_lead, keys, width),
        leaf(*key_lead, keys, value_width),
        scale=maybe(draw, 0.3, draw.choice([-0.4, 0.1, 1.0])),
        enable_gqa=enable_gqa,
    )
    kind = draw.random()
    if kind < 0.3:
        call.is_causal = True
    elif kind < 0.7:
        full = (*lead, queries, keys)
        shape = tuple(n if draw.random() < 0.7 else 1 for n in full)[draw.randint(0, len(lead)) :]
        if kind < 0.5:
            call.attn_mask = torch.rand(shape, generator=generator) < 0.7
        else:
            call.attn_mask = leaf(*shape)
    truth = Truth.of(call)
    ours = flash_attention.scaled_dot_product_attention
    return lambda: assert_close_to_truth(call, ours, truth, FUZZED_SLACK)


# --- second derivatives -------------------------------------------------------------------------


def second_derivatives(draw: random.Random, dtype: torch.dtype, seed: int) -> Check:
    """A linear function of the gradients, differentiated by every input and by grad_out."""
    problem = make_problem(draw_spec(draw, SHARE_OF_SECOND), dtype, seed)
    generator = torch.Generator().manual_seed(seed)
    fixed = {"block_size", "use_simd"}
    options = {k: v for k, v in problem.options.items() if k not in fixed}
    keep = None
    if problem.options["dropout"] > 0:
        torch.manual_seed(seed)
        keep = torch.ops.flash.dropout_mask(*problem.dropout_shape(), problem.options["dropout"])
    cotangents = [
        torch.randn(problem.inputs[n].shape, generator=generator, dtype=torch.float64).to(dtype)
        for n in problem.differentiable
    ]

    def second(call: Callable[..., Any], in_dtype: torch.dtype) -> list[Tensor]:
        leaves = problem.leaves(in_dtype)
        wanted = [leaves[n] for n in problem.differentiable]
        grad_out = problem.grad_out.to(in_dtype).requires_grad_()
        grad_lse = problem.grad_lse.to(compute_dtype(in_dtype))
        # Results and gradients may be constants: of a scale of 0, or of no keys at all.
        results = zip(call(leaves), (grad_out, grad_lse), strict=True)
        of, by = zip(*((x, g) for x, g in results if x.requires_grad), strict=True)
        first = torch.autograd.grad(of, wanted, by, create_graph=True, materialize_grads=True)
        pairs = zip(first, (c.to(in_dtype) for c in cotangents), strict=True)
        total = sum((g * c).sum() for g, c in pairs) + 0 * grad_out.sum()
        return list(
            torch.autograd.grad(
                total, [*wanted, grad_out], allow_unused=True, materialize_grads=True
            )
        )

    truth = second(lambda x: attention(x, keep=keep, **options), torch.float64)

    def ours(leaves: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        torch.manual_seed(seed)
        return flash_attention.attention_with_lse(**leaves, **problem.options)

    def check() -> None:
        names = (*problem.differentiable, "grad_out")
        for name, found, expected in zip(names, second(ours, dtype), truth, strict=True):
            assert found.shape == expected.shape and found.dtype == dtype, name
            if expected.numel() == 0:
                continue
            size = max(1.0, expected.abs().max().item())
            unit = UNIT_ROUNDOFF[compute_dtype(dtype)]
            allowed = SECOND_GRADIENT_ROUNDINGS * unit * size + rounding_of(dtype, expected)
            excess = (found.double() - expected).abs() - allowed
            assert excess.max().item() <= 0, (
                f"{problem.spec}\n{name}: off by {largest_difference(found, expected):.3g} "
                f"where the largest is {size:.3g}"
            )

    return check
