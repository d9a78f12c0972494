#include "layers/common/gated_rows.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>

#include <map>
#include <vector>

#include "message_text.h"

namespace flash::models {
namespace {

constexpr int64_t kRowsPerTask = 32;

/// The slot of the calling thread.
template <class T>
T* slot(at::Tensor& sums) {
  return sums.mutable_data_ptr<T>() + at::get_thread_num() * sums.stride(0);
}

/// A matrix from row `first` on, rows `stride` apart; null if it is undefined.
template <class T>
const T* rows_or_null(const at::Tensor& tensor, int64_t first) {
  return tensor.defined() ? tensor.const_data_ptr<T>() + first * tensor.stride(0) : nullptr;
}
template <class T>
T* mutable_rows_or_null(const at::Tensor& tensor, int64_t first) {
  return tensor.defined() ? tensor.mutable_data_ptr<T>() + first * tensor.stride(0) : nullptr;
}
int64_t stride_or_zero(const at::Tensor& tensor) { return tensor.defined() ? tensor.stride(0) : 0; }

/// A block from row `first` on.
template <class T>
kernels::GatedNorm<T> from_row(const GatedNorm& block, int64_t first) {
  return {.gate = rows_or_null<T>(block.gate, first),
          .bias = block.bias.const_data_ptr<T>(),
          .skip = rows_or_null<T>(block.skip, first),
          .scale = block.scale.const_data_ptr<T>(),
          .shift = block.shift.const_data_ptr<T>(),
          .statistics = mutable_rows_or_null<T>(block.statistics, first),
          .row_factors = rows_or_null<T>(block.row_factors, first),
          .factor_stride = stride_or_zero(block.row_factors)};
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
    kernels::activate(activation, mutable_rows_or_null<T>(block, begin), shift.const_data_ptr<T>(),
                      mutable_rows_or_null<T>(argument, begin), shift.size(0), first + begin,
                      end - begin, block.size(1));
  });
}

void activate_rows_backward(GatedActivation activation, at::Tensor& gradient,
                            const at::Tensor& forward, at::Tensor& sums, int64_t first) {
  for_rows(gradient, gradient.size(0), [&]<class T>(T, int64_t begin, int64_t end) {
    kernels::activate_backward(activation, mutable_rows_or_null<T>(gradient, begin),
                               rows_or_null<T>(forward, begin), slot<T>(sums), sums.size(1),
                               first + begin, end - begin, gradient.size(1));
  });
}

void drop_rows(at::Tensor& block, const at::Tensor& bias, const at::Tensor& factors) {
  for_rows(block, block.size(0), [&]<class T>(T, int64_t begin, int64_t end) {
    kernels::drop(mutable_rows_or_null<T>(block, begin), bias.const_data_ptr<T>(),
                  rows_or_null<T>(factors, begin), end - begin, block.size(1));
  });
}

void drop_rows_backward(at::Tensor& gradient, const at::Tensor& dropped, double factor,
                        at::Tensor& sums) {
  for_rows(gradient, gradient.size(0), [&]<class T>(T, int64_t begin, int64_t end) {
    kernels::drop_backward(mutable_rows_or_null<T>(gradient, begin),
                           rows_or_null<T>(dropped, begin), static_cast<T>(factor), slot<T>(sums),
                           end - begin, gradient.size(1));
  });
}

void outer_rows(at::Tensor& out, const at::Tensor& x, const at::Tensor& factor,
                const at::Tensor& shift) {
  for_rows(out, out.size(0), [&]<class T>(T, int64_t begin, int64_t end) {
    kernels::outer(mutable_rows_or_null<T>(out, begin), rows_or_null<T>(x, begin), x.stride(0),
                   factor.const_data_ptr<T>(), shift.const_data_ptr<T>(), end - begin, out.size(1));
  });
}

void outer_rows_backward(const at::Tensor& gradient, const at::Tensor& x, const at::Tensor& factor,
                         at::Tensor& x_gradient, at::Tensor& sums) {
  for_rows(gradient, gradient.size(0), [&]<class T>(T, int64_t begin, int64_t end) {
    kernels::outer_backward(rows_or_null<T>(gradient, begin), rows_or_null<T>(x, begin),
                            x.stride(0), factor.const_data_ptr<T>(),
                            mutable_rows_or_null<T>(x_gradient, begin), x_gradient.stride(0),
                            slot<T>(sums), end - begin, gradient.size(1));
  });
}

void gated_norm_rows(const GatedNorm& block, at::Tensor& out) {
  for_rows(out, out.size(0), [&]<class T>(T, int64_t begin, int64_t end) {
    std::vector<T> scratch(static_cast<size_t>(out.size(1)));
    kernels::gated_norm(from_row<T>(block, begin), mutable_rows_or_null<T>(out, begin),
                        scratch.data(), end - begin, out.size(1));
  });
}

void gated_norm_rows_backward(const GatedNorm& block, const at::Tensor& gradient,
                              at::Tensor& gate_gradient, at::Tensor& skip_gradient,
                              at::Tensor& factors_gradient, at::Tensor& sums) {
  for_rows(gradient, gradient.size(0), [&]<class T>(T, int64_t begin, int64_t end) {
    const kernels::GatedNormGradients<T> gradients = {
        .out = rows_or_null<T>(gradient, begin),
        .gate = mutable_rows_or_null<T>(gate_gradient, begin),
        .skip = mutable_rows_or_null<T>(skip_gradient, begin),
        .row_factors = mutable_rows_or_null<T>(factors_gradient, begin),
        .factor_stride = stride_or_zero(factors_gradient),
        .sums = slot<T>(sums)};
    kernels::gated_norm_backward(from_row<T>(block, begin), gradients, end - begin,
                                 gradient.size(1));
  });
}

}  // namespace flash::models
