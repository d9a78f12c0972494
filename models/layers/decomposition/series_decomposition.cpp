#include "layers/decomposition/series_decomposition.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <flash_attention/dropout.h>
#include <flash_attention/layer_kernels.h>
#include <torch/torch.h>

#include <optional>
#include <tuple>

#include "layers/common/linear.h"
#include "layers/common/row_blocks.h"

namespace flash::models {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

template <class T>
const T* data_or_null(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<T>() : nullptr;
}

/// Calls call(offset) for each series of a contiguous [B, T, C].
template <class Call>
void for_series(const at::Tensor& series, const Call& call) {
  const int64_t elements = series.size(1) * series.size(2);
  if (elements == 0) return;
  constexpr int64_t kElementsPerTask = 1 << 14;
  at::parallel_for(0, series.size(0), std::max<int64_t>(1, kElementsPerTask / elements),
                   [&](int64_t begin, int64_t end) {
                     for (int64_t b = begin; b < end; ++b) call(b * elements);
                   });
}

class Decomposition : public torch::autograd::Function<Decomposition> {
 public:
  /// {seasonal}, or {seasonal, trend}. An undefined `trend_before` counts as zeros.
  static variable_list forward(AutogradContext* context, const at::Tensor& series,
                               const std::optional<at::Tensor>& trend_before, int64_t window,
                               bool with_trend) {
    context->saved_data["window"] = window;
    context->saved_data["has_trend_before"] = trend_before.has_value();
    context->set_materialize_grads(false);
    const at::Tensor x = series.contiguous();
    const at::Tensor before = trend_before ? trend_before->contiguous() : at::Tensor();
    variable_list parts = {at::empty_like(x)};
    if (with_trend) parts.push_back(at::empty_like(x));
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "series_decomposition", [&] {
      const auto* const in = x.const_data_ptr<scalar_t>();
      const auto* const old = data_or_null<scalar_t>(before);
      auto* const seasonal = parts[0].mutable_data_ptr<scalar_t>();
      auto* const trend = with_trend ? parts[1].mutable_data_ptr<scalar_t>() : nullptr;
      for_series(x, [&](int64_t offset) {
        kernels::decompose(in + offset, old ? old + offset : nullptr, seasonal + offset,
                           trend ? trend + offset : nullptr, x.size(1), x.size(2), window / 2);
      });
    });
    return parts;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    refuse_second_derivative("series_decomposition");
    const int64_t window = context->saved_data["window"].toInt();
    const at::Tensor trend =
        gradients.size() > 1 && gradients[1].defined() ? gradients[1].contiguous() : at::Tensor();
    variable_list result(4);
    if (context->saved_data["has_trend_before"].toBool()) result[1] = trend;
    if (!gradients[0].defined() && !trend.defined()) return result;
    const at::Tensor seasonal =
        gradients[0].defined() ? gradients[0].contiguous() : at::zeros_like(trend);
    result[0] = at::empty_like(seasonal);
    AT_DISPATCH_FLOATING_TYPES(seasonal.scalar_type(), "series_decomposition", [&] {
      const auto* const of_seasonal = seasonal.const_data_ptr<scalar_t>();
      const auto* const of_trend = data_or_null<scalar_t>(trend);
      auto* const out = result[0].mutable_data_ptr<scalar_t>();
      for_series(seasonal, [&](int64_t offset) {
        kernels::decompose_backward(of_seasonal + offset, of_trend ? of_trend + offset : nullptr,
                                    out + offset, seasonal.size(1), seasonal.size(2), window / 2);
      });
    });
    return result;
  }
};

/// Series that are the sum of a residual and of x with dropout, which is not stored.
class SumDecomposition : public torch::autograd::Function<SumDecomposition> {
 public:
  /// As Decomposition::forward.
  static variable_list forward(AutogradContext* context, const at::Tensor& x,
                               const at::Tensor& residual,
                               const std::optional<at::Tensor>& trend_before, double p,
                               int64_t window, bool with_trend) {
    const int64_t seed = BlockedDropout(p).seed();
    context->saved_data["call"] = std::tuple(p, seed, window);
    context->saved_data["has_trend_before"] = trend_before.has_value();
    context->set_materialize_grads(false);
    const at::Tensor in = x.contiguous(), other = residual.contiguous();
    const at::Tensor before = trend_before ? trend_before->contiguous() : at::Tensor();
    variable_list parts = {at::empty_like(in)};
    if (with_trend) parts.push_back(at::empty_like(in));
    const int64_t elements = x.size(1) * x.size(2);
    const at::Tensor sums = at::empty({at::get_num_threads(), elements}, x.options());
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "series_decomposition", [&] {
      const auto* const branch = in.const_data_ptr<scalar_t>();
      const auto* const rest = other.const_data_ptr<scalar_t>();
      const auto* const old = data_or_null<scalar_t>(before);
      auto* const seasonal = parts[0].mutable_data_ptr<scalar_t>();
      auto* const trend = with_trend ? parts[1].mutable_data_ptr<scalar_t>() : nullptr;
      for_series(in, [&](int64_t offset) {
        scalar_t* const sum = sums.mutable_data_ptr<scalar_t>() + at::get_thread_num() * elements;
        kernels::dropout_add({offset, elements, p, seed}, branch + offset, rest + offset, sum);
        kernels::decompose(static_cast<const scalar_t*>(sum), old ? old + offset : nullptr,
                           seasonal + offset, trend ? trend + offset : nullptr, x.size(1),
                           x.size(2), window / 2);
      });
    });
    return parts;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    refuse_second_derivative("series_decomposition");
    const auto call = context->saved_data["call"].to<std::tuple<double, int64_t, int64_t>>();
    const at::Tensor trend =
        gradients.size() > 1 && gradients[1].defined() ? gradients[1].contiguous() : at::Tensor();
    variable_list result(6);
    if (context->saved_data["has_trend_before"].toBool()) result[2] = trend;
    if (!gradients[0].defined() && !trend.defined()) return result;
    const at::Tensor seasonal =
        gradients[0].defined() ? gradients[0].contiguous() : at::zeros_like(trend);
    const at::Tensor of_x = at::empty_like(seasonal), of_residual = at::empty_like(seasonal);
    const int64_t elements = seasonal.size(1) * seasonal.size(2);
    AT_DISPATCH_FLOATING_TYPES(seasonal.scalar_type(), "series_decomposition", [&] {
      const auto* const of_seasonal = seasonal.const_data_ptr<scalar_t>();
      const auto* const of_trend = data_or_null<scalar_t>(trend);
      auto* const to_branch = of_x.mutable_data_ptr<scalar_t>();
      auto* const to_rest = of_residual.mutable_data_ptr<scalar_t>();
      for_series(seasonal, [&](int64_t offset) {
        kernels::decompose_backward(of_seasonal + offset, of_trend ? of_trend + offset : nullptr,
                                    to_rest + offset, seasonal.size(1), seasonal.size(2),
                                    std::get<2>(call) / 2);
        kernels::dropout({offset, elements, std::get<0>(call), std::get<1>(call)},
                         static_cast<const scalar_t*>(to_rest) + offset, to_branch + offset);
      });
    });
    result[0] = of_x;
    result[1] = of_residual;
    return result;
  }
};

/// {seasonal}, or {seasonal, trend}, of residual + dropout(x).
variable_list decompose_sum(const at::Tensor& x, const at::Tensor& residual, double p,
                            bool training, int64_t window,
                            const std::optional<at::Tensor>& trend_before, bool with_trend) {
  // Blocks of dropout begin at multiples of 64.
  const bool fuses = training && p > 0.0 && fits_kernels(x) && x.sizes() == residual.sizes() &&
                     x.scalar_type() == residual.scalar_type() && x.size(1) * x.size(2) % 64 == 0;
  return fuses ? SumDecomposition::apply(x, residual, trend_before, p, window, with_trend)
               : Decomposition::apply(dropout_add(x, residual, p, training), trend_before, window,
                                      with_trend);
}

std::optional<at::Tensor> optional_of(const at::Tensor& t) {
  return t.defined() ? std::optional<at::Tensor>(t) : std::nullopt;
}

}  // namespace

at::Tensor seasonal_part(const at::Tensor& series, int64_t window) {
  return Decomposition::apply(series, std::nullopt, window, /*with_trend=*/false)[0];
}

SeriesParts decompose_series(const at::Tensor& series, int64_t window,
                             const at::Tensor& trend_before) {
  variable_list parts =
      Decomposition::apply(series, optional_of(trend_before), window, /*with_trend=*/true);
  return {parts[0], parts[1]};
}

at::Tensor seasonal_part_of_sum(const at::Tensor& x, const at::Tensor& residual, double dropout,
                                bool training, int64_t window) {
  return decompose_sum(x, residual, dropout, training, window, std::nullopt,
                       /*with_trend=*/false)[0];
}

SeriesParts decompose_series_sum(const at::Tensor& x, const at::Tensor& residual, double dropout,
                                 bool training, int64_t window, const at::Tensor& trend_before) {
  variable_list parts = decompose_sum(x, residual, dropout, training, window,
                                      optional_of(trend_before), /*with_trend=*/true);
  return {parts[0], parts[1]};
}

}  // namespace flash::models
