#pragma once
// Dropout that keeps no mask. Which elements are dropped is a function of a seed and of the
// element's index, so that the backward draws the mask again instead of reading one.
//
// Sources: Srivastava et al., "Dropout", JMLR 15 (2014), section 4, with the scaling of section 10;
// Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011, section 3.3 (Philox).

#include <ATen/core/Tensor.h>
#include <flash_attention/export.h>

namespace flash {

// Shared by the three functions below. `input` is float32 or float64 on the CPU, of any shape and
// strides; what is returned has its shape and dtype. `p` is the probability in [0, 1] of dropping
// an element; what is kept is divided by 1 - p. With p = 0, or not `training`, nothing is dropped
// and no seed drawn; otherwise one seed comes from torch's CPU generator. Element i, counted in the
// logical order of `input`, then has the same fate on every CPU, for any strides and any number of
// threads. Throws c10::TypeError for another dtype, c10::ValueError for a p outside [0, 1].

/// `input` itself where nothing is dropped. Differentiable any number of times. To be called as
/// flash::dropout, even inside the namespace: at::dropout takes the same arguments.
FLASH_API at::Tensor dropout(const at::Tensor& input, double p, bool training);

/// residual + dropout(input), in one pass. `residual` has the shape and dtype of `input`, or
/// c10::ValueError or c10::TypeError is thrown. Differentiable any number of times.
FLASH_API at::Tensor dropout_add(const at::Tensor& input, const at::Tensor& residual, double p,
                                 bool training);

enum class Activation {
  kRelu,  ///< max(x, 0)
  kGelu,  ///< x Phi(x) with the exact error function, as torch's GELU has it
};

/// dropout(activation(input)), in one pass. Nothing but `input` and the seed is kept for the
/// backward, which is one pass too. Differentiable once: a second derivative throws.
FLASH_API at::Tensor activation_dropout(const at::Tensor& input, Activation activation, double p,
                                        bool training);

/// One call of `activation_dropout`, for layers that work block by block below autograd. A block is
/// contiguous and holds elements first, first + 1, … of the call's input, `first` a multiple of 64;
/// all tensors are of one dtype and size. Throws as the functions above, c10::ValueError too for
/// blocks that are not contiguous or differ in size.
class FLASH_API BlockedActivationDropout {
 public:
  /// Draws the seed, where p > 0.
  BlockedActivationDropout(Activation activation, double p);
  /// The call that drew `seed`.
  BlockedActivationDropout(Activation activation, double p, int64_t seed);

  int64_t seed() const { return seed_; }

  /// out = dropout(activation(input))
  void forward(const at::Tensor& input, int64_t first, const at::Tensor& out) const;
  /// From a gradient for `out` to that for `input`, in place, and `out` again: in one pass.
  void backward(const at::Tensor& input, int64_t first, const at::Tensor& gradient,
                const at::Tensor& out) const;

 private:
  Activation activation_;
  double p_;
  int64_t seed_;
};

}  // namespace flash
