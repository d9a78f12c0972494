#include "layers/gated_rows.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/gelu_backward.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>

#include <map>
#include <vector>

#include "layers/gated_loops.h"
#include "message_text.h"

namespace flash::models {
namespace {

constexpr int64_t kRowsPerTask = 32;

/// What a thread adds its sums to.
template <class T>
T* slot(at::Tensor& sums) {
  return sums.mutable_data_ptr<T>() + at::get_thread_num() * sums.stride(0);
}

template <class T>
GatedNormPointers<T> pointers(const GatedNorm& block) {
  return {
      .gate = block.gate.const_data_ptr<T>(),
      .bias = block.bias.const_data_ptr<T>(),
      .skip = block.skip.const_data_ptr<T>(),
      .scale = block.scale.const_data_ptr<T>(),
      .shift = block.shift.const_data_ptr<T>(),
      .statistics = block.statistics.mutable_data_ptr<T>(),
      .row_factors = block.row_factors.defined() ? block.row_factors.const_data_ptr<T>() : nullptr,
      .factor_stride = block.row_factors.defined() ? block.row_factors.stride(0) : 0,
      .width = block.skip.size(1)};
}

/// Calls `call(T(), begin, end)` for parts of the rows, T being the tensor's type.
template <class Call>
void for_rows(const at::Tensor& like, int64_t rows, const Call& call) {
  AT_DISPATCH_FLOATING_TYPES(like.scalar_type(), "gated_rows", [&] {
    at::parallel_for(0, rows, kRowsPerTask,
                     [&](int64_t begin, int64_t end) { call(scalar_t(), begin, end); });
  });
}

}  // namespace

GatedActivation gated_activation(const std::string& name) {
  using enum GatedActivation;
  static const std::map<std::string, GatedActivation> known = {
      {"ReLU", kRelu}, {"Softplus", kSoftplus}, {"Tanh", kTanh},           {"SELU", kSelu},
      {"ELU", kElu},   {"GELU", kGelu},         {"LeakyReLU", kLeakyRelu}, {"Sigmoid", kSigmoid}};
  TORCH_CHECK_VALUE(
      name != "GLU",
      "TFT: expected a grn_activation that keeps the width, got \"GLU\", which halves "
      "it; use \"ELU\", \"GELU\", \"ReLU\", \"SELU\", \"LeakyReLU\", \"Softplus\", \"Tanh\" or "
      "\"Sigmoid\"");
  const auto found = known.find(name);
  if (found != known.end()) return found->second;
  TORCH_WARN("TFT: grn_activation \"", excerpt(name),
             "\" is unknown; ELU is used, as in neuralforecast");
  return kElu;
}

at::Tensor row_sums(at::IntArrayRef sizes, const at::TensorOptions& options) {
  std::vector<int64_t> all = {at::get_num_threads()};
  all.insert(all.end(), sizes.begin(), sizes.end());
  return at::zeros(all, options);
}

bool keeps_argument(GatedActivation activation) { return activation == GatedActivation::kGelu; }

void activate_rows(GatedActivation activation, at::Tensor& block, const at::Tensor& shift,
                   int64_t first, const at::Tensor& argument) {
  for_rows(block, block.size(0), [&]<class T>(T, int64_t begin, int64_t end) {
    activate_loop(activation, block.mutable_data_ptr<T>(), shift.const_data_ptr<T>(), shift.size(0),
                  first, block.size(1), begin, end);
  });
  if (activation == GatedActivation::kGelu) {
    if (argument.defined()) argument.copy_(block);
    at::gelu_(block);
  }
}

void activate_rows_backward(GatedActivation activation, at::Tensor& gradient,
                            const at::Tensor& forward, at::Tensor& sums, int64_t first) {
  if (activation == GatedActivation::kGelu) at::gelu_backward_out(gradient, gradient, forward);
  for_rows(gradient, gradient.size(0), [&]<class T>(T, int64_t begin, int64_t end) {
    activate_backward_loop(activation, gradient.mutable_data_ptr<T>(), forward.const_data_ptr<T>(),
                           slot<T>(sums), sums.size(1), first, gradient.size(1), begin, end);
  });
}

void drop_rows(at::Tensor& block, const at::Tensor& bias, const at::Tensor& factors) {
  for_rows(block, block.size(0), [&]<class T>(T, int64_t begin, int64_t end) {
    drop_loop(block.mutable_data_ptr<T>(), bias.const_data_ptr<T>(),
              factors.defined() ? factors.const_data_ptr<T>() : nullptr, block.size(1), begin, end);
  });
}

void drop_rows_backward(at::Tensor& gradient, const at::Tensor& dropped, double factor,
                        at::Tensor& sums) {
  for_rows(gradient, gradient.size(0), [&]<class T>(T, int64_t begin, int64_t end) {
    drop_backward_loop(gradient.mutable_data_ptr<T>(), dropped.const_data_ptr<T>(),
                       static_cast<T>(factor), slot<T>(sums), gradient.size(1), begin, end);
  });
}

void outer_rows(at::Tensor& out, const at::Tensor& x, const at::Tensor& factor,
                const at::Tensor& shift) {
  for_rows(out, out.size(0), [&]<class T>(T, int64_t begin, int64_t end) {
    outer_loop(out.mutable_data_ptr<T>(), x.const_data_ptr<T>(), x.stride(0),
               factor.const_data_ptr<T>(), shift.const_data_ptr<T>(), out.size(1), begin, end);
  });
}

void outer_rows_backward(const at::Tensor& gradient, const at::Tensor& x, const at::Tensor& factor,
                         at::Tensor& x_gradient, at::Tensor& sums) {
  for_rows(gradient, gradient.size(0), [&]<class T>(T, int64_t begin, int64_t end) {
    outer_backward_loop(gradient.const_data_ptr<T>(), x.const_data_ptr<T>(), x.stride(0),
                        factor.const_data_ptr<T>(), x_gradient.mutable_data_ptr<T>(),
                        x_gradient.stride(0), slot<T>(sums), gradient.size(1), begin, end);
  });
}

void gated_norm_rows(const GatedNorm& block, at::Tensor& out) {
  for_rows(out, out.size(0), [&]<class T>(T, int64_t begin, int64_t end) {
    std::vector<T> scratch(static_cast<size_t>(out.size(1)));
    gated_norm_loop(pointers<T>(block), out.mutable_data_ptr<T>(), scratch.data(), begin, end);
  });
}

void gated_norm_rows_backward(const GatedNorm& block, const at::Tensor& gradient,
                              at::Tensor& gate_gradient, at::Tensor& skip_gradient,
                              at::Tensor& factors_gradient, at::Tensor& sums) {
  for_rows(gradient, gradient.size(0), [&]<class T>(T, int64_t begin, int64_t end) {
    const bool factors = factors_gradient.defined();
    const GatedNormGradients<T> gradients = {
        .gradient = gradient.const_data_ptr<T>(),
        .gate = gate_gradient.mutable_data_ptr<T>(),
        .skip = skip_gradient.mutable_data_ptr<T>(),
        .factors = factors ? factors_gradient.mutable_data_ptr<T>() : nullptr,
        .factor_stride = factors ? factors_gradient.stride(0) : 0,
        .sums = slot<T>(sums)};
    gated_norm_backward_loop(pointers<T>(block), gradients, begin, end);
  });
}

}  // namespace flash::models
