#pragma once
// How a model computes attention; the same for all models.

#include <cstdint>

namespace flash::models {

/// How a model computes attention. `use_flash_attention` changes results by rounding only, except
/// in Autoformer and FEDformer, which have no softmax attention: there it replaces auto-correlation
/// and Fourier blocks by softmax attention, which is a different model (see autoformer.h,
/// fedformer.h).
///
///     flash::models::ModelConfig config;
///     config.use_flash_attention = true;
///     auto options = flash::models::PatchTSTOptions(/*h=*/24, /*input_size=*/96).config(config);
struct ModelConfig {
  /// True: `flash::attention`, in O(N) memory. False: standard attention, which stores the scores.
  bool use_flash_attention = false;
  /// Keys per online-softmax step of `flash::attention`, at least 1.
  int64_t flash_block_size = 64;
  /// True: the backward recomputes each encoder or decoder layer instead of keeping its activations
  /// (see gradient_checkpoint.h). Results stay the same.
  bool gradient_checkpointing = false;
};

}  // namespace flash::models
