#pragma once
// The switch between exact flash attention and materialised scores, shared by all models.

#include <cstdint>

namespace flash::models {

/// How a model computes attention. Both ways give the same numbers up to rounding, except in
/// Autoformer and FEDformer, which have no softmax attention of their own: there the switch
/// replaces auto-correlation and Fourier blocks by it, which is another model (see autoformer.h,
/// fedformer.h).
///
///     flash::models::ModelConfig config;
///     config.use_flash_attention = true;
///     auto options = flash::models::PatchTSTOptions(/*h=*/24, /*input_size=*/96).config(config);
struct ModelConfig {
  /// True: `flash::attention`, O(N) memory. False: the score matrices are stored.
  bool use_flash_attention = false;
  /// Keys per online-softmax step of `flash::attention`, at least 1.
  int64_t flash_block_size = 64;
  /// True: each encoder or decoder layer is computed again in the backward, instead of its
  /// activations being kept (see gradient_checkpoint.h). The numbers stay the same.
  bool gradient_checkpointing = false;
};

}  // namespace flash::models
