"""The faults that `make mutants` plants, one at a time, and the tests that have to find each.

A fault is text of the sources and what takes its place: for an expression the wrong expression, for
statements whole text in which `ON` is true while the fault is switched on. `by` names the tests of
`make test` that are tried, in this order, until one fails: a C++ binary, or files of tests/python.
"""

from __future__ import annotations

from dataclasses import dataclass

CSRC = ("csrc_test", "ops_test")
OPS = ("ops_test",)
MODELS = ("models_test",)


@dataclass(frozen=True)
class Fault:
    """`old`, which `file` holds once, becomes `new` (an expression) or `text` (with ON)."""

    what: str
    file: str
    old: str
    new: str = ""
    text: str = ""
    by: tuple[str, ...] = ()

    @property
    def layer(self) -> str:
        """Top-level folder; "python" for the packages."""
        return "python" if self.file.endswith(".py") else self.file.split("/")[0]


def _skipped(what: str, file: str, old: str, by: tuple[str, ...]) -> Fault:
    """A statement that is left out."""
    return Fault(what, file, old, text=f"if (!ON) {{ {old} }}", by=by)


KERNELS = [
    Fault(
        "causal limit one key short",
        "csrc/generic/key_ranges.h",
        "clamp(last, -1, shape.keys - 1) + 1",
        "clamp(last, -1, shape.keys - 1)",
        by=CSRC,
    ),
    Fault(
        "keys that some query may not attend taken for full ones",
        "csrc/generic/key_ranges.h",
        "full_end_ = min_of(full_end_, limit_[lane]);",
        text="full_end_ = ON ? limit_[lane] : min_of(full_end_, limit_[lane]);",
        by=CSRC,
    ),
    Fault(
        "left side of the window ignored inside of a block",
        "csrc/generic/key_ranges.h",
        "return V::if_less(position, start_[v], otherwise, x);",
        text="return ON ? x : V::if_less(position, start_[v], otherwise, x);",
        by=CSRC,
    ),
    Fault(
        "ALiBi with the other sign",
        "csrc/generic/score_stage.h",
        "V::broadcast(-slope_)",
        "V::broadcast(slope_)",
        by=CSRC,
    ),
    Fault(
        "derivative of the softcap left out",
        "csrc/generic/score_stage.h",
        "V::sub(one, V::mul(x[v], x[v]))",
        "one",
        by=CSRC,
    ),
    Fault(
        "masked weights not marked where a bias masks",
        "csrc/generic/score_stage.h",
        "y = V::if_equal(bias, minus_inf, minus_zero, y);",
        text="if (!ON) y = V::if_equal(bias, minus_inf, minus_zero, y);",
        by=("test_edge_values.py", "test_bad_numbers.py"),
    ),
    Fault(
        "rows of out not rescaled when the maximum rises",
        "csrc/generic/forward.h",
        "accumulate ? rescale_ : nullptr",
        "static_cast<const T*>(nullptr)",
        by=CSRC,
    ),
    _skipped(
        "row sum not rescaled when the maximum rises",
        "csrc/generic/forward.h",
        "sum_[v] = V::mul(sum_[v], factor[v]);",
        CSRC,
    ),
    Fault(
        "kept weights not scaled up under dropout",
        "csrc/generic/forward.h",
        "T finish_scale() const { return static_cast<T>(dropout_keep_scale(p_->score.dropout)); }",
        text="T finish_scale() const {"
        " return ON ? T(1) : static_cast<T>(dropout_keep_scale(p_->score.dropout)); }",
        by=CSRC,
    ),
    Fault(
        "grouped heads interleaved",
        "csrc/generic/forward_scratch.h",
        "key_head_ = head / (shape.heads / shape.key_heads);",
        text="key_head_ = ON ? head % shape.key_heads : head / (shape.heads / shape.key_heads);",
        by=CSRC,
    ),
    Fault(
        "gradient of lse added instead of subtracted",
        "csrc/generic/backward.h",
        "V::sub(delta, read(grad_lse))",
        "V::add(delta, read(grad_lse))",
        by=CSRC,
    ),
    Fault(
        "dQ without the scale",
        "csrc/generic/backward.h",
        "{true, scale_, nullptr, nullptr}, ragged ? Terms{begins, ends} : Terms{});",
        text="{true, ON ? T(1) : scale_, nullptr, nullptr},"
        " ragged ? Terms{begins, ends} : Terms{});",
        by=CSRC,
    ),
    Fault(
        "last query that attends a key left out of dK and dV",
        "csrc/generic/backward.h",
        "end[j] = max_of(begin[j], query + 1)",
        "end[j] = max_of(begin[j], query)",
        by=CSRC,
    ),
    Fault(
        "dV of the key's head",
        "csrc/generic/backward.h",
        "row_pointer<T>(p_.grad_value, batch_, value_head_, key)",
        "row_pointer<T>(p_.grad_value, batch_, key_head_, key)",
        by=CSRC,
    ),
    Fault(
        "decode: out not rescaled between steps",
        "csrc/generic/few_queries.h",
        "rescale_[i] * out[c]",
        "out[c]",
        by=CSRC,
    ),
    Fault(
        "decode: scores past the last key not cleared",
        "csrc/generic/few_queries.h",
        "for (int64_t j = keys; j % kBlock != 0; ++j)",
        text="for (int64_t j = keys; ON ? j % W != 0 : j % kBlock != 0; ++j)",
        by=CSRC,
    ),
    Fault(
        "packing reads a row past the last one",
        "csrc/generic/product.h",
        "lane + i >= count",
        "lane + i > count",
        by=("csrc_test", "test_guard_pages.py"),
    ),
    Fault(
        "bias gradient of the last block kept, not summed",
        "csrc/generic/bias_gradient.h",
        "grad[j * to[3]] += sum;",
        text="grad[j * to[3]] = ON ? sum : grad[j * to[3]] + sum;",
        by=("csrc_test", "test_options.py"),
    ),
    Fault(
        "chunks of queries always paired with the same keys",
        "csrc/generic/partition.h",
        "(chunk_of(unit) + step) % chunks_",
        "chunk_of(unit)",
        by=CSRC,
    ),
    Fault(
        "product of matrices keeps the last 256 terms only",
        "csrc/generic/matrix_product.h",
        "p.add || n > 0",
        "p.add",
        by=CSRC,
    ),
    Fault(
        "two columns of a transposed right side read as one",
        "csrc/generic/matrix_product.h",
        "p_.right_column != 1 && p_.columns > 1",
        "p_.right_column != 1 && p_.columns > 2",
        by=CSRC,
    ),
    Fault(
        "a delay of all times not wrapped",
        "csrc/generic/time_delay.h",
        "row >= times ? row - times : row",
        "row > times ? row - times : row",
        by=CSRC,
    ),
    Fault(
        "dropout of a block counts from the block's first element",
        "csrc/generic/dropout.h",
        "(p.first + at) / kDropoutBlock",
        "at / kDropoutBlock",
        by=CSRC,
    ),
    Fault(
        "moving average never forgets",
        "csrc/generic/moving_average.h",
        "sum - static_cast<double>(leaving[c])",
        "sum",
        by=("csrc_test", "models_test"),
    ),
]

OPERATOR = [
    Fault(
        "gradient of lse taken as contiguous",
        "ops/attention_cpu.cpp",
        "grad_lse->contiguous()",
        "at::Tensor(*grad_lse)",
        by=("ops_test", "test_strided_gradients.py"),
    ),
    Fault(
        "lse of 16-bit queries in 16 bits on meta",
        "ops/attention_meta.cpp",
        "log_sum_exp(empty_row_stats(query, s))",
        "log_sum_exp(empty_row_stats(query, s)).to(query.scalar_type())",
        by=("test_meta_results.py", "test_dispatch.py"),
    ),
    Fault(
        "sink left out of the maximum when keys are split",
        "ops/split_keys.cpp",
        "T max = sink;",
        text="T max = ON ? kMinusInf : sink;",
        by=("ops_test", "test_decoding_sinks.py", "test_decoding.py"),
    ),
    Fault(
        "positions not counted from the first key of a part",
        "ops/split_keys.cpp",
        "position_in_part(position, part * kKeysPerPart)",
        "position",
        by=("ops_test", "test_decoding_sinks.py", "test_decoding.py"),
    ),
    Fault(
        "truncate sets every length",
        "ops/key_value_cache.cpp",
        "lengths_.clamp_max(length)",
        "at::full_like(lengths_, length)",
        by=("ops_test", "test_cache_lengths.py", "test_decoding.py"),
    ),
    Fault(
        "counts ignored where lengths are equal",
        "ops/key_value_cache.cpp",
        "!counts.has_value() && (lengths_ == longest()).all().item<bool>()",
        "(lengths_ == longest()).all().item<bool>()",
        by=("ops_test", "test_cache_lengths.py", "test_decoding.py"),
    ),
    _skipped(
        "compiled backward shared by two softcaps",
        "ops/attention_autograd.cpp",
        "args.collect(options_.softcap);",
        ("test_compiled_options.py", "test_compile.py"),
    ),
    Fault(
        "vmap: a bias that each call wants a gradient of is shared",
        "ops/attention_vmap.cpp",
        "is_shared && !own",
        "is_shared",
        by=("test_vmap.py",),
    ),
    _skipped(
        "one dropout mask for all packed sequences",
        "ops/varlen_cpu.cpp",
        "p.score.dropout_seed += static_cast<uint64_t>(n);",
        ("ops_test", "test_varlen.py"),
    ),
    Fault(
        "sinks of the first packed sequence for all",
        "ops/varlen_cpu.cpp",
        "n * score_.sink_strides[0]",
        "0",
        by=("ops_test", "test_varlen.py"),
    ),
    Fault(
        "drop-in: causal counted from the bottom right",
        "ops/scaled_dot_product_attention.cpp",
        "if (is_causal && !TORCH_STATICALLY_KNOWN_TRUE",
        text="if (!ON && is_causal && !TORCH_STATICALLY_KNOWN_TRUE",
        by=("ops_test", "test_sdpa.py"),
    ),
    Fault(
        "second derivatives: causal counted from the top left",
        "ops/definition.cpp",
        "+ (keys - queries);",
        text="+ (ON ? int64_t{0} : keys - queries);",
        by=("ops_test", "test_second_derivatives.py"),
    ),
    Fault(
        "slopes of the first batch element for all",
        "ops/kernel_params.cpp",
        "slopes.dim() == 2 ? slopes.stride(0) : 0",
        "0",
        by=("ops_test", "test_options.py"),
    ),
    Fault(
        "heads that do not divide accepted",
        "ops/checks.cpp",
        "heads % others == 0",
        "true",
        by=("ops_test", "test_errors.py"),
    ),
]

FORECASTERS = [
    Fault(
        "RevIN divides by the unbiased deviation",
        "models/layers/rev_in.cpp",
        "windows.var(1, /*unbiased=*/false, /*keepdim=*/true)",
        "windows.var(1, /*unbiased=*/true, /*keepdim=*/true)",
        by=MODELS,
    ),
    Fault(
        "token convolution rolled one way only",
        "models/layers/data_embedding.cpp",
        "series.roll(-1, 1)",
        "series.roll(1, 1)",
        by=MODELS,
    ),
    Fault(
        "Informer selects the least active queries",
        "models/layers/prob_attention.cpp",
        ".topk(selected, -1, /*largest=*/true, /*sorted=*/false)",
        text=".topk(selected, -1, /*largest=*/!(ON), /*sorted=*/false)",
        by=MODELS,
    ),
    Fault(
        "iTransformer normalizes along the series",
        "models/itransformer.cpp",
        "series.mean(2, /*keepdim=*/true)",
        "series.mean(1, /*keepdim=*/true).expand_as(series.mean(2, /*keepdim=*/true))",
        by=MODELS,
    ),
    Fault(
        "TFT sums the heads instead of taking their mean",
        "models/layers/interpretable_attention.cpp",
        "heads.mean(1)",
        "heads.sum(1)",
        by=MODELS,
    ),
    Fault(
        "scaler minmax1 not mapped to [-1, 1]",
        "models/temporal_norm.cpp",
        "z = (z + 1.0) / 2.0",
        "z = z / 2.0",
        by=MODELS,
    ),
    Fault(
        "validation begins one row late",
        "models/data/time_split.cpp",
        ".validation = {sizes.train, validation_end}",
        text=".validation = {sizes.train + (ON ? 1 : 0), validation_end}",
        by=MODELS,
    ),
    Fault(
        "the worst epoch is kept",
        "models/train/trainer.cpp",
        """validation->loss <
                         result.epochs""",
        text="""(ON ? -validation->loss : validation->loss) <
                         (ON ? -1 : 1) * result.epochs""",
        by=MODELS,
    ),
]

PYTHON = [
    Fault(
        "attention forgets the window",
        "ops/flash_attention/functional.py",
        """    return torch.ops.flash.attention(
        query,
        key,
        value,
        bias=bias,
        causal=causal,
        query_positions=query_positions,
        window=window,""",
        text="""    return torch.ops.flash.attention(
        query,
        key,
        value,
        bias=bias,
        causal=causal,
        query_positions=query_positions,
        window=None if ON else window,""",
        by=("test_score_options.py",),
    ),
    Fault(
        "multi-head attention drops weights in evaluation",
        "ops/flash_attention/nn.py",
        "config.dropout if self.training else 0.0",
        "config.dropout",
        by=("test_nn.py",),
    ),
    Fault(
        "the first of two replacements to be undone ends both",
        "ops/flash_attention/sdpa.py",
        "            if cls._active == 0:\n"
        "                torch.backends.mha.set_fastpath_enabled(cls",
        text="            if ON or cls._active == 0:\n"
        "                torch.backends.mha.set_fastpath_enabled(cls",
        by=("test_sdpa_replacement.py",),
    ),
    Fault(
        "cache attends without its counts",
        "ops/flash_attention/cache.py",
        "query, counts, bias, limits, alibi_slopes, softcap, sinks, scale",
        text="query, None if ON else counts, bias, limits, alibi_slopes, softcap, sinks, scale",
        by=("test_cache_lengths.py", "test_decoding.py"),
    ),
    Fault(
        "drop-in ignores enable_gqa",
        "ops/flash_attention/sdpa.py",
        "scale=scale, enable_gqa=enable_gqa",
        text="scale=scale, enable_gqa=False if ON else enable_gqa",
        by=("test_sdpa.py",),
    ),
]

FAULTS = [*KERNELS, *OPERATOR, *FORECASTERS, *PYTHON]
