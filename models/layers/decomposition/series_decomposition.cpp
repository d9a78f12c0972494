#include "layers/decomposition/series_decomposition.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <flash_attention/layer_kernels.h>
#include <torch/torch.h>

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

}  // namespace

at::Tensor seasonal_part(const at::Tensor& series, int64_t window) {
  return Decomposition::apply(series, std::nullopt, window, /*with_trend=*/false)[0];
}

SeriesParts decompose_series(const at::Tensor& series, int64_t window,
                             const at::Tensor& trend_before) {
  const auto before =
      trend_before.defined() ? std::optional<at::Tensor>(trend_before) : std::nullopt;
  variable_list parts = Decomposition::apply(series, before, window, /*with_trend=*/true);
  return {parts[0], parts[1]};
}

}  // namespace flash::models
