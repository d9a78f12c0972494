#pragma once
// The drop-in for at::scaled_dot_product_attention, and a way to have programs that call that one
// use it without a change.

#include <ATen/core/Tensor.h>
#include <flash_attention/export.h>

#include <optional>

namespace flash {

/// Signature and meaning of at::scaled_dot_product_attention, computed by
/// flash::attention: exact, in O(N) memory whatever the arguments are.
///
/// query [.., H, L, D], key [.., Hk, S, D], value [.., Hv, S, Dv] of two or more dimensions,
/// floating; what stands before H broadcasts. A query on another device than the CPU makes the
/// call at::scaled_dot_product_attention's. Hk and Hv are H or 1; with
/// `enable_gqa` any divisor of H. attn_mask broadcasts to [.., H, L, S]: bool, True = attend, or
/// floating, added to the scores and differentiable. `is_causal` aligns the mask at the top left:
/// query i attends keys 0 … i. `dropout_p` drops whenever it is above 0, in training or not.
/// Returns [.., H, L, Dv].
///
/// Where it differs: a row that attends nothing gives 0, key and value of two lengths are refused,
/// and dropout draws other random numbers. Throws c10::TypeError, c10::ValueError or
/// c10::NotImplementedError naming what was expected.
FLASH_API at::Tensor scaled_dot_product_attention(const at::Tensor& query, const at::Tensor& key,
                                                  const at::Tensor& value,
                                                  const std::optional<at::Tensor>& attn_mask = {},
                                                  double dropout_p = 0.0, bool is_causal = false,
                                                  std::optional<double> scale = {},
                                                  bool enable_gqa = false);

/// While one of these lives, at::scaled_dot_product_attention of CPU tensors is the function above,
/// in every thread of the process: from C++, from Python, inside modules. What that does not take
/// (nested and sparse tensors, forward-mode derivatives) goes to torch's, as before.
class FLASH_API ReplaceSdpa {
 public:
  ReplaceSdpa();
  ~ReplaceSdpa();
  ReplaceSdpa(const ReplaceSdpa&) = delete;
  ReplaceSdpa& operator=(const ReplaceSdpa&) = delete;
};

}  // namespace flash
