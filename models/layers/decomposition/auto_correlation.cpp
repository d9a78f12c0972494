#include "layers/decomposition/auto_correlation.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <flash_attention/layer_kernels.h>
#include <flash_attention/time_delay.h>
#include <torch/torch.h>

#include <cmath>

#include "layers/common/batch_statistics.h"
#include "layers/common/linear.h"
#include "layers/common/row_blocks.h"

namespace flash::models {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// [B, T, C] -> [B, C, T / 2 + 1], contiguous
at::Tensor spectrum_by_channel(const at::Tensor& series) {
  // A transform along time returns its result in this memory layout, so this copies nothing.
  return at::fft_rfft(series, std::nullopt, 1).transpose(1, 2).contiguous();
}

/// The sum over channels of rfft(query) * conj(rfft(key)), [B, T, C] twice -> [B, T / 2 + 1], not
/// differentiable.
at::Tensor cross_spectrum(const at::Tensor& query, const at::Tensor& key) {
  const at::Tensor q = at::view_as_real(spectrum_by_channel(query));
  const at::Tensor k = at::view_as_real(spectrum_by_channel(key));
  const int64_t channels = q.size(1), frequencies = q.size(2);
  at::Tensor sums = at::zeros({q.size(0), frequencies, 2}, q.options());
  AT_DISPATCH_FLOATING_TYPES(q.scalar_type(), "cross_spectrum", [&] {
    const auto* const of_query = q.const_data_ptr<scalar_t>();
    const auto* const of_key = k.const_data_ptr<scalar_t>();
    auto* const out = sums.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, q.size(0), 1, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        const int64_t offset = b * channels * frequencies * 2;
        kernels::add_cross_spectrum(of_query + offset, of_key + offset, out + b * frequencies * 2,
                                    channels, frequencies);
      }
    });
  });
  return at::view_as_complex(sums);
}

/// cross_spectrum as a differentiable function for odd T. The backward recomputes the spectra.
class CrossSpectrum : public torch::autograd::Function<CrossSpectrum> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& query,
                            const at::Tensor& key) {
    context->save_for_backward({query, key});
    return cross_spectrum(query, key);
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    refuse_second_derivative("auto_correlation");
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &query = saved[0], &key = saved[1];
    const int64_t times = query.size(1);
    // The adjoint of a real transform is an inverse transform, up to a factor and except that the
    // inverse counts every frequency but 0 twice.
    at::Tensor gradient = gradients[0] * (0.5 * static_cast<double>(times));
    gradient.select(1, 0).mul_(2.0);
    gradient = gradient.unsqueeze(1);
    const auto back = [times](const at::Tensor& by_channel) {
      return at::fft_irfft(by_channel, times, 2).transpose(1, 2);
    };
    variable_list result(2);
    if (context->needs_input_grad(0)) result[0] = back(spectrum_by_channel(key).mul_(gradient));
    if (context->needs_input_grad(1)) {
      result[1] = back(spectrum_by_channel(query).mul_(gradient.conj()));
    }
    return result;
  }
};

/// Correlations computed before, as a differentiable function of query and key. Few of them are
/// used, so their gradient is cheaper directly than through the transform.
class KnownCorrelation : public torch::autograd::Function<KnownCorrelation> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& query,
                            const at::Tensor& key, const at::Tensor& delays,
                            const at::Tensor& correlations, double scale) {
    context->saved_data["scale"] = scale;
    // Each is needed for the gradient of the other only.
    context->save_for_backward({key.requires_grad() ? query : at::Tensor(),
                                query.requires_grad() ? key : at::Tensor(), delays});
    return correlations.view_as(correlations);
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    refuse_second_derivative("auto_correlation");
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &query = saved[0], &key = saved[1], &delays = saved[2];
    const at::Tensor weights = gradients[0] * context->saved_data["scale"].toDouble();
    variable_list result(5);
    if (key.defined()) result[0] = time_delay_aggregation(key, -delays, weights);
    if (query.defined()) result[1] = time_delay_aggregation(query, delays, weights);
    return result;
  }
};

/// Indices of the `count` largest columns of correlations [B, lags]: [B, count], or [1, count] by
/// the batch's mean.
at::Tensor largest(const at::Tensor& correlations, int64_t count, bool shared) {
  const at::Tensor scores = shared ? mean_of_rows(correlations) : correlations;
  return std::get<1>(scores.topk(count, 1));
}

/// [B, lags] at delays [B, k] or [1, k] -> [B, k]
at::Tensor at_delays(const at::Tensor& correlations, const at::Tensor& delays) {
  return correlations.gather(1, delays.expand({correlations.size(0), -1}));
}

/// [B, S, C] -> [B, length, C], padded with zeros.
at::Tensor continued(const at::Tensor& series, int64_t length) {
  return series.size(1) == length ? series
                                  : at::constant_pad_nd(series, {0, 0, 0, length - series.size(1)});
}

}  // namespace

int64_t delay_count(int64_t factor, int64_t length) {
  return static_cast<int64_t>(static_cast<double>(factor) * std::log(static_cast<double>(length)));
}

ChosenDelays choose_delays(const at::Tensor& query, const at::Tensor& key, double scale,
                           int64_t count, bool shared) {
  const int64_t length = query.size(1);
  if (length % 2 == 1) {
    // The inverse transform has length T - 1, so its values are not plain correlations.
    const at::Tensor correlations = at::fft_irfft(CrossSpectrum::apply(query, key)) * scale;
    const at::Tensor delays = largest(correlations.detach(), count, shared);
    return {at_delays(correlations, delays), delays};
  }
  at::Tensor delays, chosen;
  {
    const at::NoGradGuard no_grad;
    const at::Tensor correlations = at::fft_irfft(cross_spectrum(query, key), length) * scale;
    delays = largest(correlations, count, shared);
    chosen = at_delays(correlations, delays);
  }
  return {KnownCorrelation::apply(query, key, delays, chosen, scale), delays};
}

at::Tensor AutoCorrelation::forward(const AttentionProjections& projections, const at::Tensor& x,
                                    const at::Tensor& memory, bool training) const {
  const torch::nn::LinearImpl &query = projections.query_layer(), &key = projections.key_layer();
  const torch::nn::LinearImpl &value = projections.value_layer(), &out = projections.out_layer();
  const int64_t length = x.size(1);
  const at::Tensor seen = memory.size(1) > length ? memory.slice(1, 0, length) : memory;
  const bool is_continued = seen.size(1) < length;

  // The query's bias adds the same to the correlation at every delay, and so does the key's unless
  // the key is padded. That affects neither the selection nor the softmax.
  const at::Tensor key_map = query.weight.t().mm(key.weight);  // [D, D]
  const at::Tensor key_shift = is_continued ? query.weight.t().mv(key.bias) : at::Tensor();
  ChosenDelays chosen =
      choose_delays(x, continued(models::linear(seen, key_map, key_shift), length),
                    1.0 / static_cast<double>(query.weight.size(0)), delay_count(factor_, length),
                    /*shared=*/training);
  // Added equally to all, so that the biases get a gradient of zero instead of none.
  const at::Tensor weights = (chosen.correlations + query.bias.dot(key.bias)).softmax(1);

  const at::Tensor added = time_delay_aggregation(continued(seen, length), chosen.delays, weights);
  const at::Tensor out_map = out.weight.mm(value.weight);  // [D, D]
  const at::Tensor value_shift = out.weight.mv(value.bias);
  if (!is_continued) return models::linear(added, out_map, out.bias + value_shift);
  // The padding of the values has no bias.
  const at::Tensor ones = continued(at::ones({x.size(0), seen.size(1), 1}, x.options()), length);
  return models::linear(added, out_map, out.bias) +
         time_delay_aggregation(ones, chosen.delays, weights) * value_shift;
}

}  // namespace flash::models
