#pragma once
// Dropout that stores no mask. Whether an element is dropped is a function of a seed and the
// element's index, so the backward regenerates the mask.
//
// Sources: Srivastava et al., "Dropout", JMLR 15 (2014), section 4, with the scaling of section 10;
// Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011, section 3.3 (Philox).

#include <ATen/core/Tensor.h>
#include <flash_attention/export.h>

namespace flash {

// For the three functions below: `input` is float32 or float64 on the CPU, of any shape and
// strides, and the result has its shape and dtype. `p` is the probability in [0, 1] of dropping an
// element; the elements that are kept are divided by 1 - p. With p = 0 or without `training`,
// nothing is dropped and no seed is drawn; otherwise one seed comes from torch's CPU generator.
// Whether element i, in the logical order of `input`, is kept then depends on the seed and i alone:
// not on the CPU, the strides or the number of threads. Throws c10::TypeError for another dtype,
// c10::ValueError for a p outside [0, 1].

/// Returns `input` itself if nothing is dropped. Differentiable any number of times. Call it as
/// flash::dropout even inside the namespace, since at::dropout takes the same arguments.
FLASH_API at::Tensor dropout(const at::Tensor& input, double p, bool training);

/// residual + dropout(input), in one pass. `residual` has the shape and dtype of `input`; otherwise
/// throws c10::ValueError or c10::TypeError. Differentiable any number of times.
FLASH_API at::Tensor dropout_add(const at::Tensor& input, const at::Tensor& residual, double p,
                                 bool training);

enum class Activation {
  kRelu,  ///< max(x, 0)
  kGelu,  ///< x Phi(x) with the exact error function, torch's default
};

/// dropout(activation(input)), in one pass. The backward, also one pass, needs only `input` and the
/// seed. Differentiable once: a second derivative throws c10::NotImplementedError.
FLASH_API at::Tensor activation_dropout(const at::Tensor& input, Activation activation, double p,
                                        bool training);

/// One call of `dropout`, for layers that compute block by block below autograd; for blocks and
/// errors see below.
class FLASH_API BlockedDropout {
 public:
  /// Draws a seed if p > 0.
  explicit BlockedDropout(double p);
  /// With a seed that an earlier call drew.
  BlockedDropout(double p, int64_t seed) : p_(p), seed_(seed) {}

  int64_t seed() const { return seed_; }

  /// out = dropout(input); from the gradient of `out`, that of `input`. `out` may be `input`.
  void apply(const at::Tensor& input, int64_t first, const at::Tensor& out) const;

 private:
  double p_;
  int64_t seed_;
};

/// One call of `activation_dropout`, for layers that compute block by block below autograd. A block
/// is contiguous and holds elements first, first + 1, … of the call's input, where `first` is a
/// multiple of 64; all tensors have the same dtype and size. Throws like the functions above, and
/// c10::ValueError for blocks that are not contiguous, differ in size or begin elsewhere.
class FLASH_API BlockedActivationDropout {
 public:
  /// Draws a seed if p > 0.
  BlockedActivationDropout(Activation activation, double p);
  /// With a seed that an earlier call drew.
  BlockedActivationDropout(Activation activation, double p, int64_t seed);

  int64_t seed() const { return seed_; }

  /// out = dropout(activation(input))
  void forward(const at::Tensor& input, int64_t first, const at::Tensor& out) const;
  /// Replaces `gradient`, of out, by that of input, and computes `out` again, in one pass.
  void backward(const at::Tensor& input, int64_t first, const at::Tensor& gradient,
                const at::Tensor& out) const;

 private:
  Activation activation_;
  double p_;
  int64_t seed_;
};

}  // namespace flash
