#include "layers/common/gated_rows.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <map>
#include <vector>

#include "layers/common/row_blocks.h"
#include "message_text.h"

namespace flash::models {
namespace {

constexpr int64_t kRowsPerTask = 32;

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

/// Calls `call(begin, end, slot)` for each piece of the rows, slot being the one of the piece in
/// `sums`, as a pointer to elements of the type of `like`. The rows begin with row `first`.
template <class Call>
void for_pieces(const at::Tensor& like, int64_t rows, const at::Tensor& sums, int64_t first,
                const Call& call) {
  const int64_t before = first / kRowsPerPiece;
  AT_DISPATCH_FLOATING_TYPES(like.scalar_type(), "gated_rows", [&] {
    at::parallel_for(0, number_of_pieces(rows), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        call(i * kRowsPerPiece, std::min((i + 1) * kRowsPerPiece, rows),
             sums.mutable_data_ptr<scalar_t>() + (before + i) * sums.stride(0));
      }
    });
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

at::Tensor row_sums(int64_t rows, at::IntArrayRef sizes, const at::TensorOptions& options) {
  std::vector<int64_t> all = {number_of_pieces(rows)};
  all.insert(all.end(), sizes.begin(), sizes.end());
  return at::zeros(all, options);
}

bool keeps_argument(GatedActivation activation) { return activation == GatedActivation::kGelu; }

void activate_rows(GatedActivation activation, const at::Tensor& block, const at::Tensor& shift,
                   int64_t first, const at::Tensor& argument) {
  for_rows(block, block.size(0), [&]<class T>(T, int64_t begin, int64_t end) {
    kernels::activate(activation, mutable_rows_or_null<T>(block, begin), shift.const_data_ptr<T>(),
                      mutable_rows_or_null<T>(argument, begin), shift.size(0), first + begin,
                      end - begin, block.size(1));
  });
}

void activate_rows_backward(GatedActivation activation, const at::Tensor& gradient,
                            const at::Tensor& forward, const at::Tensor& sums, int64_t first) {
  for_pieces(gradient, gradient.size(0), sums, first,
             [&]<class T>(int64_t begin, int64_t end, T* slot) {
               kernels::activate_backward(activation, mutable_rows_or_null<T>(gradient, begin),
                                          rows_or_null<T>(forward, begin), slot, /*period=*/1,
                                          /*first=*/0, end - begin, gradient.size(1));
             });
}

ShiftGradient::ShiftGradient(const at::Tensor& shift, int64_t rows)
    : pieces_(row_sums(rows, {shift.size(1)}, shift.options())), sums_(at::zeros_like(shift)) {}

void ShiftGradient::add(const at::Tensor& gradient, int64_t first) {
  const int64_t shifts = sums_.size(0), width = sums_.size(1);
  if (shifts == 1) return;
  AT_DISPATCH_FLOATING_TYPES(gradient.scalar_type(), "gated_rows", [&] {
    const auto* row = gradient.const_data_ptr<scalar_t>();
    auto* const sums = sums_.mutable_data_ptr<scalar_t>();
    for (int64_t r = 0; r < gradient.size(0); ++r, row += width) {
      scalar_t* const sum = sums + (first + r) % shifts * width;
      for (int64_t c = 0; c < width; ++c) sum[c] += row[c];
    }
  });
}

at::Tensor ShiftGradient::sum() const {
  return sums_.size(0) == 1 ? pieces_.sum(0, /*keepdim=*/true) : sums_;
}

void drop_rows(const at::Tensor& block, const at::Tensor& bias, const at::Tensor& factors) {
  for_rows(block, block.size(0), [&]<class T>(T, int64_t begin, int64_t end) {
    kernels::drop(mutable_rows_or_null<T>(block, begin), bias.const_data_ptr<T>(),
                  rows_or_null<T>(factors, begin), end - begin, block.size(1));
  });
}

void drop_rows_backward(const at::Tensor& gradient, const at::Tensor& dropped, double factor,
                        const at::Tensor& sums, int64_t first) {
  for_pieces(gradient, gradient.size(0), sums, first,
             [&]<class T>(int64_t begin, int64_t end, T* slot) {
               kernels::drop_backward(mutable_rows_or_null<T>(gradient, begin),
                                      rows_or_null<T>(dropped, begin), static_cast<T>(factor), slot,
                                      end - begin, gradient.size(1));
             });
}

void outer_rows(const at::Tensor& out, const at::Tensor& x, const at::Tensor& factor,
                const at::Tensor& shift) {
  for_rows(out, out.size(0), [&]<class T>(T, int64_t begin, int64_t end) {
    kernels::outer(mutable_rows_or_null<T>(out, begin), rows_or_null<T>(x, begin), x.stride(0),
                   factor.const_data_ptr<T>(), shift.const_data_ptr<T>(), end - begin, out.size(1));
  });
}

void outer_rows_backward(const at::Tensor& gradient, const at::Tensor& x, const at::Tensor& factor,
                         const at::Tensor& x_gradient, const at::Tensor& sums, int64_t first) {
  for_pieces(gradient, gradient.size(0), sums, first,
             [&]<class T>(int64_t begin, int64_t end, T* slot) {
               kernels::outer_backward(rows_or_null<T>(gradient, begin), rows_or_null<T>(x, begin),
                                       x.stride(0), factor.const_data_ptr<T>(),
                                       mutable_rows_or_null<T>(x_gradient, begin),
                                       x_gradient.stride(0), slot, end - begin, gradient.size(1));
             });
}

void gated_norm_rows(const GatedNorm& block, const at::Tensor& out) {
  for_rows(out, out.size(0), [&]<class T>(T, int64_t begin, int64_t end) {
    std::vector<T> scratch(static_cast<size_t>(out.size(1)));
    kernels::gated_norm(from_row<T>(block, begin), mutable_rows_or_null<T>(out, begin),
                        scratch.data(), end - begin, out.size(1));
  });
}

void gated_norm_rows_backward(const GatedNorm& block, const at::Tensor& gradient,
                              const at::Tensor& gate_gradient, const at::Tensor& skip_gradient,
                              const at::Tensor& factors_gradient, const at::Tensor& sums,
                              int64_t first) {
  for_pieces(gradient, gradient.size(0), sums, first,
             [&]<class T>(int64_t begin, int64_t end, T* slot) {
               const kernels::GatedNormGradients<T> gradients = {
                   .out = rows_or_null<T>(gradient, begin),
                   .gate = mutable_rows_or_null<T>(gate_gradient, begin),
                   .skip = mutable_rows_or_null<T>(skip_gradient, begin),
                   .row_factors = mutable_rows_or_null<T>(factors_gradient, begin),
                   .factor_stride = stride_or_zero(factors_gradient),
                   .sums = slot};
               kernels::gated_norm_backward(from_row<T>(block, begin), gradients, end - begin,
                                            gradient.size(1));
             });
}

}  // namespace flash::models
