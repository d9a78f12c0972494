"""Fuzz cases beyond the plain operator: packed sequences, the KV cache, the drop-in for
scaled_dot_product_attention, and second derivatives.

Each function generates a random case and its reference, and returns a check of the active kernels.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import flash_attention
import torch
from torch import Tensor

from fuzz.specs import WIDTHS, axes, maybe, random_heads, random_spec, window
from support.checks import Checker, largest_difference
from support.problems import DTYPES_16BIT, Problem, compute_dtype, make_problem
from support.reference import NAMES, attention
from support.sdpa_calls import Call, Reference, assert_close_to_reference
from support.tolerances import (
    ABSOLUTE_16BIT,
    FLOAT32_ROUNDING_UNITS_LARGEST,
    FLOAT64_ABSOLUTE,
    FUZZ_SLACK,
    SECOND_GRADIENT_ROUNDINGS,
    UNIT_ROUNDOFF,
)

Check = Callable[[], None]

LENGTHS = (0, 1, 1, 2, 3, 5, 7, 8, 9, 16, 17, 24, 25, 33, 48, 64, 65, 100, 130)
# The reference for second derivatives holds about twenty score matrices.
SECOND_DERIVATIVE_WORK_SHARE = 0.1


def output_rounding(dtype: torch.dtype, expected: Tensor) -> Tensor:
    """The tolerance for rounding each element once to `dtype`."""
    if dtype not in DTYPES_16BIT:
        return torch.zeros(())
    return UNIT_ROUNDOFF[dtype] * expected.abs() + ABSOLUTE_16BIT[dtype]


def score_options(rng: random.Random) -> dict[str, Any]:
    return {
        "window": maybe(rng, 0.3, window(rng)),
        "softcap": maybe(rng, 0.2, rng.choice([0.4, 1.5, 20.0]), 0.0),
        "scale": maybe(rng, 0.2, rng.choice([0.0, -0.4, 0.1, 2.0])),
    }


def heads_first(rows: Tensor) -> Tensor:
    """[T, H, D] as [1, H, T, D]."""
    return rows.transpose(0, 1).unsqueeze(0)


# --- packed sequences ---------------------------------------------------------------------------


def packed(rng: random.Random, dtype: torch.dtype, seed: int) -> Check:
    generator = torch.Generator().manual_seed(seed)
    heads = random_heads(rng)
    count = rng.choice([0, 1, 2, 3, 5])
    lengths = [(rng.choice(LENGTHS), rng.choice(LENGTHS)) for _ in range(count)]
    if lengths and rng.random() < 0.2:
        lengths[0] = (rng.choice([1, 3, 8]), rng.choice([1025, 2048, 2100]))
    width, value_width = rng.choice(WIDTHS[:16]), rng.choice(WIDTHS[:16])
    options = {
        **score_options(rng),
        "causal": rng.random() < 0.4,
        "block_size": rng.choice([64, 1, 7, 256]),
        "use_simd": rng.random() < 0.9,
    }

    def tensor(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    def rows(length: int, row_heads: int, row_width: int) -> Tensor:
        if rng.random() < 0.3:
            return tensor(row_heads, length, row_width).transpose(0, 1)
        return tensor(length, row_heads, row_width)

    queries, keys = [q for q, _ in lengths], [k for _, k in lengths]
    inputs = {
        "query": rows(sum(queries), heads["heads"], width),
        "key": rows(sum(keys), heads["key_heads"], width),
        "value": rows(sum(keys), heads["value_heads"], value_width),
    }
    for name in ("alibi_slopes", "sinks"):
        shape = rng.choice([None, None, (heads["heads"],), (count, heads["heads"])])
        if shape is not None:
            inputs[name] = tensor(*shape).abs() / 4 if name == "alibi_slopes" else tensor(*shape)
    grad_out = tensor(sum(queries), heads["heads"], value_width)
    checkers = []
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
        checkers.append(Checker(problem, FUZZ_SLACK))

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
        for n, checker in enumerate(checkers):
            query = slice(sum(queries[:n]), sum(queries[: n + 1]))
            key = slice(sum(keys[:n]), sum(keys[: n + 1]))
            parts = {"out": out[query], "dq": found["dq"][query]}
            parts |= {name: found[name][key] for name in ("dk", "dv")}
            results = {name: heads_first(x.detach()) for name, x in parts.items()}
            for name in ("alibi_slopes", "sinks"):
                if name in inputs and inputs[name].dim() == 2:
                    results[NAMES[name]] = found[NAMES[name]][n]
            checker.assert_close(results)
        for name in ("alibi_slopes", "sinks"):
            if name in inputs and inputs[name].dim() == 1 and checkers:
                assert_sum(NAMES[name], found[NAMES[name]], checkers, dtype)

    return check


def assert_sum(name: str, actual: Tensor, checkers: list[Checker], dtype: torch.dtype) -> None:
    """A gradient shared by all sequences is the sum over the sequences."""
    expected = torch.stack([checker.reference[name] for checker in checkers]).sum(0)
    unit = FLOAT32_ROUNDING_UNITS_LARGEST * UNIT_ROUNDOFF[compute_dtype(dtype)]
    units = sum(checker.rounding[name].largest for checker in checkers)
    tiles = sum(checker.tile_error(name) for checker in checkers)
    allowed = FUZZ_SLACK * (unit * units + FLOAT64_ABSOLUTE + tiles)
    allowed = allowed + output_rounding(dtype, expected)
    excess = (actual.double() - expected).abs() - allowed
    assert excess.max().item() <= 0, f"{name}: {excess.max().item():.3g} above the tolerance"


# --- the key-value cache ------------------------------------------------------------------------


def cached(rng: random.Random, dtype: torch.dtype, seed: int) -> Check:
    generator = torch.Generator().manual_seed(seed)
    heads = random_heads(rng)
    batch = rng.choice([1, 1, 2, 3])
    width, value_width = rng.choice(WIDTHS[:16]), rng.choice(WIDTHS[:16])
    prompt = rng.choice([1, 2, 17, 40, 63, 64, 65, 1030, 2046])
    if prompt > 1000:
        width, value_width, batch = min(width, 9), min(value_width, 9), 1
    options = score_options(rng)

    def tensor(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    per_head = {}
    for name in ("alibi_slopes", "sinks"):
        shape = rng.choice([None, None, (heads["heads"],), (batch, heads["heads"])])
        if shape is not None:
            per_head[name] = tensor(*shape).abs() / 4 if name == "alibi_slopes" else tensor(*shape)
    steps = [prompt, *(rng.choice([1, 1, 1, 2, 5, 8, 9]) for _ in range(3))]
    capacity = sum(steps) + rng.choice([0, 3])
    lengths = [0] * batch
    kept = [(tensor(heads["key_heads"], 0, width), tensor(heads["value_heads"], 0, value_width))]
    kept *= batch
    # The operations on the cache, step by step, and the expected attention after each.
    script: list[dict[str, Any]] = []
    for positions in steps:
        step: dict[str, Any] = {"truncate": None, "counts": None, "checkers": {}}
        if script and rng.random() < 0.15:
            step["truncate"] = rng.randrange(max(lengths) + 1)
            kept = [(k[:, : step["truncate"]], v[:, : step["truncate"]]) for k, v in kept]
        counts = [positions] * batch
        if rng.random() < 0.4:
            counts = [rng.randint(0, positions) for _ in range(batch)]
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
        if rng.random() < 0.3:
            letters = {"B": batch, "H": heads["heads"], "L": positions, "S": longest, "1": 1}
            step["bias"] = tensor(*(letters[letter] for letter in axes(rng)))
        step["is_attended"] = positions < 100  # not for a long prompt: that is not decoding
        for b, (n, length) in enumerate(zip(counts, lengths, strict=True)):
            if n == 0 or not step["is_attended"]:
                continue
            own = {
                "query": step["query"][b : b + 1, :, :n],
                "key": kept[b][0].unsqueeze(0),
                "value": kept[b][1].unsqueeze(0),
            }
            if step["bias"] is not None:
                full = step["bias"].expand(batch, heads["heads"], positions, longest)
                own["bias"] = full[b : b + 1, :, :n, :length]
            own |= {k: x[b] if x.dim() == 2 else x for k, x in per_head.items()}
            grad_out = torch.zeros(1, heads["heads"], n, value_width, dtype=dtype)
            grad_lse = torch.zeros(1, heads["heads"], n, dtype=compute_dtype(dtype))
            call_options = {**options, "causal": True, "dropout": 0.0}
            problem = Problem(own, call_options, (), grad_out, grad_lse)
            step["checkers"][b] = Checker(problem, FUZZ_SLACK)
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
            if not step["is_attended"]:
                continue
            out = cache.attention(
                step["query"], step["counts"], bias=step["bias"], **options, **per_head
            )
            for b, checker in step["checkers"].items():
                n = checker.problem.inputs["query"].size(2)
                checker.assert_close({"out": out[b : b + 1, :, :n]})

    return check


# --- the drop-in --------------------------------------------------------------------------------


def drop_in(rng: random.Random, dtype: torch.dtype, seed: int) -> Check:
    generator = torch.Generator().manual_seed(seed)
    lead = rng.choice([(), (1,), (3,), (2, 1), (2, 3), (2, 2, 2)])
    queries, keys = (rng.choice(LENGTHS[1:]) for _ in range(2))
    if rng.random() < 0.15:
        queries, keys = rng.choice([1, 4, 8]), rng.choice([1024, 2049])
    width, value_width = rng.choice(WIDTHS[:16]), rng.choice(WIDTHS[:16])
    enable_gqa = len(lead) >= 2 and rng.random() < 0.4
    key_lead = lead
    if enable_gqa:
        key_lead = (
            *lead[:-1],
            rng.choice([n for n in range(1, lead[-1] + 1) if lead[-1] % n == 0]),
        )

    def leaf(*shape: int) -> Tensor:
        x = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        return x.requires_grad_()

    call = Call(
        leaf(*lead, queries, width),
        leaf(*key_lead, keys, width),
        leaf(*key_lead, keys, value_width),
        scale=maybe(rng, 0.3, rng.choice([-0.4, 0.1, 1.0])),
        enable_gqa=enable_gqa,
    )
    kind = rng.random()
    if kind < 0.3:
        call.is_causal = True
    elif kind < 0.7:
        full = (*lead, queries, keys)
        shape = tuple(n if rng.random() < 0.7 else 1 for n in full)[rng.randint(0, len(lead)) :]
        if kind < 0.5:
            call.attn_mask = torch.rand(shape, generator=generator) < 0.7
        else:
            call.attn_mask = leaf(*shape)
    truth = Reference.of(call)
    ours = flash_attention.scaled_dot_product_attention
    return lambda: assert_close_to_reference(call, ours, truth, FUZZ_SLACK)


# --- second derivatives -------------------------------------------------------------------------


def second_derivatives(rng: random.Random, dtype: torch.dtype, seed: int) -> Check:
    """Derivatives of a linear function of the gradients, for every input and grad_out."""
    problem = make_problem(random_spec(rng, SECOND_DERIVATIVE_WORK_SHARE), dtype, seed)
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
        # Results and gradients may be constant: with scale 0 or without keys.
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
            allowed = SECOND_GRADIENT_ROUNDINGS * unit * size + output_rounding(dtype, expected)
            excess = (found.double() - expected).abs() - allowed
            assert excess.max().item() <= 0, (
                f"{problem.spec}\n{name}: off by {largest_difference(found, expected):.3g}"
                f"; the largest value is {size:.3g}"
            )

    return check
