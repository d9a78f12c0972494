#include "layers/auto_correlation.h"

#include <flash_attention/time_delay.h>
#include <torch/torch.h>

#include <cmath>

#include "layers/row_blocks.h"

namespace flash::models {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// The mean over channels of rfft(query) * conj(rfft(key)), [B, T, C] twice -> [B, T / 2 + 1].
at::Tensor cross_spectrum(const at::Tensor& query, const at::Tensor& key) {
  return (at::fft_rfft(query, std::nullopt, 1) * at::fft_rfft(key, std::nullopt, 1).conj()).mean(2);
}

/// Correlations that are known already, as a function of query and key: the transform that found
/// them need not be differentiated, as few of them are used.
class KnownCorrelation : public torch::autograd::Function<KnownCorrelation> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& query,
                            const at::Tensor& key, const at::Tensor& delays,
                            const at::Tensor& correlations) {
    // Each is needed for the gradient of the other only.
    context->save_for_backward({key.requires_grad() ? query : at::Tensor(),
                                query.requires_grad() ? key : at::Tensor(), delays});
    return correlations.view_as(correlations);
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    refuse_second_derivative("auto_correlation");
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &query = saved[0], &key = saved[1], &delays = saved[2];
    const int64_t channels = (query.defined() ? query : key).size(2);
    const at::Tensor weights = gradients[0] / static_cast<double>(channels);
    variable_list result(4);
    if (key.defined()) result[0] = time_delay_aggregation(key, -delays, weights);
    if (query.defined()) result[1] = time_delay_aggregation(query, delays, weights);
    return result;
  }
};

/// Which `count` columns of correlations [B, lags] are largest: [B, count], or [1, count] by the
/// batch's mean.
at::Tensor largest(const at::Tensor& correlations, int64_t count, bool shared) {
  const at::Tensor scores = shared ? correlations.mean(0, /*keepdim=*/true) : correlations;
  return std::get<1>(scores.topk(count, 1));
}

/// [B, lags] at delays [B, k] or [1, k] -> [B, k]
at::Tensor at_delays(const at::Tensor& correlations, const at::Tensor& delays) {
  return correlations.gather(1, delays.expand({correlations.size(0), -1}));
}

}  // namespace

int64_t delay_count(int64_t factor, int64_t length) {
  return static_cast<int64_t>(static_cast<double>(factor) *
                              std::log(static_cast<double>(length)));
}

ChosenDelays choose_delays(const at::Tensor& query, const at::Tensor& key, int64_t count,
                           bool shared) {
  const int64_t length = query.size(1);
  if (length % 2 == 1) {
    // The transform back is one digit short, so that no plain correlation is the number wanted.
    const at::Tensor correlations = at::fft_irfft(cross_spectrum(query, key));
    const at::Tensor delays = largest(correlations.detach(), count, shared);
    return {at_delays(correlations, delays), delays};
  }
  at::Tensor delays, chosen;
  {
    const at::NoGradGuard no_grad;
    const at::Tensor correlations = at::fft_irfft(cross_spectrum(query, key), length);
    delays = largest(correlations, count, shared);
    chosen = at_delays(correlations, delays);
  }
  return {KnownCorrelation::apply(query, key, delays, chosen), delays};
}

at::Tensor AutoCorrelationImpl::forward(AttentionProjections& projections, const at::Tensor& x,
                                        const at::Tensor& memory) {
  const int64_t length = x.size(1);
  const int64_t missing = std::max<int64_t>(0, length - memory.size(1));
  const at::Tensor seen = memory.slice(1, 0, length);
  const auto continued = [missing](const at::Tensor& t) {
    return missing > 0 ? at::constant_pad_nd(t, {0, 0, 0, missing}) : t;
  };
  const at::Tensor query = projections.query(x);
  const at::Tensor key = continued(projections.key(seen));
  const ChosenDelays chosen =
      choose_delays(query, key, delay_count(factor_, length), /*shared=*/is_training());
  return time_delay_aggregation(continued(projections.value(seen)), chosen.delays,
                                chosen.correlations.softmax(1));
}

}  // namespace flash::models
