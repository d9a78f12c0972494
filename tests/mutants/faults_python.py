"""Faults of the Python package."""

from __future__ import annotations

from fault import Fault

PYTHON = [
    Fault(
        "attention ignores the window",
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
        "multi-head attention drops weights in eval mode",
        "ops/flash_attention/nn.py",
        "config.dropout if self.training else 0.0",
        "config.dropout",
        by=("test_nn.py",),
    ),
    Fault(
        "undoing one of two replacements ends both",
        "ops/flash_attention/sdpa.py",
        "            if cls._active == 0:\n"
        "                torch.backends.mha.set_fastpath_enabled(cls",
        text="            if ON or cls._active == 0:\n"
        "                torch.backends.mha.set_fastpath_enabled(cls",
        by=("test_sdpa_replacement.py",),
    ),
    Fault(
        "cache ignores counts",
        "ops/flash_attention/cache.py",
        "            counts,\n            bias,\n",
        text="            None if ON else counts,\n            bias,\n",
        by=("test_cache_lengths.py", "test_decoding.py"),
    ),
    Fault(
        "drop-in ignores enable_gqa",
        "ops/flash_attention/sdpa.py",
        "scale=scale, enable_gqa=enable_gqa",
        text="scale=scale, enable_gqa=False if ON else enable_gqa",
        by=("test_sdpa.py",),
    ),
    Fault(
        "transposed parameter treated as the one before",
        "models/python/bound_model.cpp",
        "own.strides() == given.strides()",
        "true",
        by=("test_models_as_modules.py::test_data_with_new_strides_are_used",),
    ),
    Fault(
        "second C++ model advances torch's generator",
        "models/python/bound_model.cpp",
        "    const RngStateGuard unmoved;",
        text="    std::optional<RngStateGuard> unmoved;\n    if (!ON) unmoved.emplace();",
        by=(
            "test_models_as_modules.py::test_functional_call_does_not_advance_the_torch_generator",
        ),
    ),
    Fault(
        "load ignores use_flash_attention",
        "models/python/_checkpoint.py",
        "use_flash_attention=use_flash_attention",
        text="use_flash_attention=False if ON else use_flash_attention",
        by=("test_models_as_modules.py::test_load_applies_the_given_settings",),
    ),
    Fault(
        "TFT's mask hides each step from itself",
        "models/python/_classes.py",
        "mask.triu(1)",
        "mask.triu()",
        by=("test_models.py::test_tft_mask_in_the_state_dict_is_causal",),
    ),
    Fault(
        "class derived from a model not recognised as that model",
        "models/python/_module.py",
        "next(c.__name__ for c in cls.__mro__ if c.__bases__ == (ForecastModel,))",
        "cls.__name__",
        by=("test_models_as_modules.py::test_subclass_is_saved_and_loaded_as_its_base_class",),
    ),
    Fault(
        "every neuralforecast 3.x accepted by accelerate",
        "models/python/_neuralforecast.py",
        'version.startswith(SUPPORTED + ".")',
        'version.startswith("3.")',
        by=("test_accelerate.py::test_unsupported_release_error_gives_the_pip_command",),
    ),
    Fault(
        "accelerate replaces the mechanism of Autoformer and FEDformer by default",
        "models/python/_neuralforecast.py",
        "name not in CHANGED_BY_FLASH",
        "True",
        by=("test_accelerate.py::test_flash_attention_is_the_default_where_it_is_exact",),
    ),
    Fault(
        "restore leaves the model accelerated",
        "models/python/_neuralforecast.py",
        "        del model.forward\n",
        text="        if not ON:\n            del model.forward\n",
        by=("test_accelerate.py::test_restore_undoes_accelerate_and_ignores_other_objects",),
    ),
    Fault(
        "memory usage ignores use_simd",
        "ops/flash_attention/nn.py",
        "config.block_size, config.use_simd\n",
        text="config.block_size, ON or config.use_simd\n",
        by=("test_nn.py::test_memory_usage_without_simd_matches_the_scalar_kernels",),
    ),
    Fault(
        "multi-head attention with larger blocks by default",
        "ops/flash_attention/nn.py",
        "flash_block_size: int = 64",
        text="flash_block_size: int = 128 if ON else 64",
        by=("test_nn.py::test_config_defaults",),
    ),
    Fault(
        "cache swaps slopes and sinks",
        "ops/flash_attention/cache.py",
        "            alibi_slopes,\n            softcap,\n            sinks,\n",
        text="            sinks if ON else alibi_slopes,\n            softcap,\n"
        "            alibi_slopes if ON else sinks,\n",
        by=("test_cache_lengths.py", "test_fuzzing.py"),
    ),
    Fault(
        "any release of torch accepted",
        "ops/flash_attention/_library.py",
        "    if release not in known:",
        text="    if release not in known and not ON:",
        by=("test_install.py::test_import_error_names_the_required_torch",),
    ),
    Fault(
        "replacement undone without the lock",
        "ops/flash_attention/sdpa.py",
        "        with cls._lock:\n            if self._undone:",
        text="        with __import__('contextlib').nullcontext() if ON else cls._lock:\n"
        "            if self._undone:",
        by=("test_sdpa_replacement.py::test_undo_waits_for_the_lock",),
    ),
    Fault(
        "parts of a row joined without rescaling the sum so far",
        "ops/flash_attention/distributed/parts.py",
        "(old_max - base).exp_()",
        "torch.ones_like(base)",
        by=("test_parts.py::test_parts_sum_to_the_whole",),
    ),
    Fault(
        "the last keys of a window are not sent",
        "ops/flash_attention/distributed/schedule.py",
        "least(key_end, query_end + right)",
        "least(key_end, query_end)",
        by=("test_schedule.py",),
    ),
    Fault(
        "gradients of a key that processes share are not summed",
        "ops/flash_attention/distributed/dtensor.py",
        "call.placements(name, Partial())",
        "call.placements(name)",
        by=("test_dtensor.py::test_two_processes",),
    ),
    Fault(
        "the cost model counts a key that a causal mask hides",
        "ops/flash_attention/distributed/workload.py",
        "end - 1 - reach.right - first",
        "end - 2 - reach.right - first",
        by=("test_cost.py::test_attended_pairs_of_any_spans",),
    ),
    Fault(
        "gradients of sharded parameters are not summed over the windows of all processes",
        "models/python/_dtensor.py",
        "Partial() if divided else Replicate()",
        "Replicate()",
        by=("test_dtensor_models.py::test_windows_and_parameters_are_divided",),
    ),
    Fault(
        "queries before the end of a cache take the place of the last ones",
        "ops/flash_attention/transformers/pattern.py",
        "self.start + self.queries != self.reachable",
        "False",
        by=("test_transformers_attention.py",),
    ),
    Fault(
        "a window as long as the queries is taken for one without a bound",
        "ops/flash_attention/transformers/pattern.py",
        "left >= self.start + self.queries - 1",
        "left >= self.queries - 1",
        by=("test_transformers_attention.py",),
    ),
]
