#pragma once
// A drop-in for at::scaled_dot_product_attention, and a way to make unchanged programs use it.

#include <ATen/core/Tensor.h>
#include <flash_attention/export.h>

#include <optional>

namespace flash {

/// at::scaled_dot_product_attention computed by flash::attention: exact, and in O(N) memory for all
/// arguments.
///
/// query [.., H, L, D], key [.., Hk, S, D] and value [.., Hv, S, Dv] are floating and have two or
/// more dimensions; those before the heads broadcast. Hk and Hv are H or 1, or with `enable_gqa`
/// any divisor of H. attn_mask broadcasts to [.., H, L, S]: bool, True = attend, or floating, added
/// to the scores and differentiable. `is_causal` aligns the mask at the top left: query i attends
/// keys 0 … i. `dropout_p` applies whenever it is above 0, in training or not. Returns [.., H, L,
/// Dv]. If query is not on the CPU, at::scaled_dot_product_attention computes the call.
///
/// It differs from torch's in that a row with every key masked gives 0, that key and value must
/// have the same length, and in the random numbers of dropout. Throws c10::TypeError,
/// c10::ValueError or c10::NotImplementedError; the message says what was expected.
FLASH_API at::Tensor scaled_dot_product_attention(const at::Tensor& query, const at::Tensor& key,
                                                  const at::Tensor& value,
                                                  const std::optional<at::Tensor>& attn_mask = {},
                                                  double dropout_p = 0.0, bool is_causal = false,
                                                  std::optional<double> scale = {},
                                                  bool enable_gqa = false);

/// While an object of this class exists, at::scaled_dot_product_attention of CPU tensors is the
/// function above, in every thread of the process: from C++, from Python and inside modules. Calls
/// that the function does not support (nested and sparse tensors, forward-mode derivatives) still
/// go to torch's.
class FLASH_API ReplaceSdpa {
 public:
  ReplaceSdpa();
  ~ReplaceSdpa();
  ReplaceSdpa(const ReplaceSdpa&) = delete;
  ReplaceSdpa& operator=(const ReplaceSdpa&) = delete;
};

}  // namespace flash
