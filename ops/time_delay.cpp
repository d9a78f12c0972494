// Aggregation over time delays and correlation at time delays: two bilinear functions, each of
// which is the derivative of the other.

#include <ATen/ATen.h>
#include <flash_attention/time_delay.h>
#include <torch/csrc/autograd/custom_function.h>

#include "ops/kernel_selection.h"
#include "ops/schedule.h"

namespace flash {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr char kAggregation[] = "flash::time_delay_aggregation";
constexpr char kCorrelation[] = "flash::time_delay_correlation";

ConstSeries series_of(const at::Tensor& t) {
  return {t.const_data_ptr(), t.stride(0), t.stride(1)};
}

/// `delays` must be contiguous and in [0, T).
Delays delays_of(const at::Tensor& delays) {
  return {delays.const_data_ptr<int64_t>(), delays.size(0) == 1 ? 0 : delays.size(1)};
}

at::Tensor aggregate(const at::Tensor& value, const at::Tensor& delays, const at::Tensor& weights) {
  const at::Tensor v = rows_contiguous(value), w = weights.contiguous();
  const at::Tensor out = at::empty(v.sizes(), v.options());
  AggregationParams p = {};
  p.batch = v.size(0), p.times = v.size(1), p.channels = v.size(2), p.delays = delays.size(1);
  p.delay = delays_of(delays);
  p.value = series_of(v);
  p.weights = w.const_data_ptr();
  p.out = {out.mutable_data_ptr(), out.stride(0), out.stride(1)};
  const TypedKernels& kernels = kernels_of(kAggregation, v.scalar_type());
  run_units(kernels.aggregation_plan(p),
            [&](int64_t begin, int64_t end) { kernels.aggregation(p, begin, end); });
  return out;
}

at::Tensor correlate(const at::Tensor& query, const at::Tensor& key, const at::Tensor& delays,
                     double scale) {
  const at::Tensor q = rows_contiguous(query), k = rows_contiguous(key);
  const at::Tensor out = at::empty({q.size(0), delays.size(1)}, q.options());
  CorrelationParams p = {};
  p.batch = q.size(0), p.times = q.size(1), p.channels = q.size(2), p.delays = delays.size(1);
  p.delay = delays_of(delays);
  p.query = series_of(q);
  p.key = series_of(k);
  p.scale = scale;
  p.out = out.mutable_data_ptr();
  const TypedKernels& kernels = kernels_of(kCorrelation, q.scalar_type());
  run_units(kernels.correlation_plan(p),
            [&](int64_t begin, int64_t end) { kernels.correlation(p, begin, end); });
  return out;
}

/// `delays` modulo `times`, contiguous, as the kernels read them.
at::Tensor modulo(const at::Tensor& delays, int64_t times) {
  // Without times, no delay is ever used.
  return times == 0 ? at::zeros(delays.sizes(), delays.options())
                    : at::remainder(delays, times).contiguous();
}

at::Tensor reversed(const at::Tensor& delays, int64_t times) { return modulo(-delays, times); }

at::Tensor aggregation(const at::Tensor& value, const at::Tensor& delays,
                       const at::Tensor& weights);
at::Tensor correlation(const at::Tensor& query, const at::Tensor& key, const at::Tensor& delays,
                       double scale);

class Aggregation : public torch::autograd::Function<Aggregation> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& value, const at::Tensor& delays,
                            const at::Tensor& weights) {
    // Only the gradient of the weights needs the value.
    ctx->save_for_backward({weights.requires_grad() ? value : at::Tensor(), delays, weights});
    return aggregate(value, delays, weights);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &value = saved[0], &delays = saved[1], &weights = saved[2], &grad = grads[0];
    variable_list result(3);
    if (ctx->needs_input_grad(0)) {
      result[0] = aggregation(grad, reversed(delays, grad.size(1)), weights);
    }
    if (ctx->needs_input_grad(2)) result[2] = correlation(value, grad, delays, 1.0);
    return result;
  }
};

class Correlation : public torch::autograd::Function<Correlation> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& query, const at::Tensor& key,
                            const at::Tensor& delays, double scale) {
    ctx->saved_data["scale"] = scale;
    // Only the gradient of the other needs each of them.
    ctx->save_for_backward({key.requires_grad() ? query : at::Tensor(),
                            query.requires_grad() ? key : at::Tensor(), delays});
    return correlate(query, key, delays, scale);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &query = saved[0], &key = saved[1], &delays = saved[2];
    const at::Tensor weights = grads[0] * ctx->saved_data["scale"].toDouble();
    variable_list result(4);
    if (ctx->needs_input_grad(0)) {
      result[0] = aggregation(key, reversed(delays, key.size(1)), weights);
    }
    if (ctx->needs_input_grad(1)) result[1] = aggregation(query, delays, weights);
    return result;
  }
};

at::Tensor aggregation(const at::Tensor& value, const at::Tensor& delays,
                       const at::Tensor& weights) {
  return Aggregation::apply(value, delays, weights);
}

at::Tensor correlation(const at::Tensor& query, const at::Tensor& key, const at::Tensor& delays,
                       double scale) {
  return Correlation::apply(query, key, delays, scale);
}

void check_delays(const char* op, const at::Tensor& delays, int64_t batch) {
  TORCH_CHECK_TYPE(delays.scalar_type() == at::kLong, op, ": expected delays of dtype int64, got ",
                   delays.scalar_type(), "; convert them with .to(torch::kLong)");
  TORCH_CHECK_VALUE(delays.device().is_cpu(), op, ": expected delays on the CPU, got them on ",
                    delays.device(), "; move them with .cpu()");
  TORCH_CHECK_VALUE(delays.dim() == 2 && (delays.size(0) == batch || delays.size(0) == 1), op,
                    ": expected delays [", batch, ", k], or [1, k] to share them, got ",
                    delays.sizes());
}

}  // namespace

at::Tensor time_delay_aggregation(const at::Tensor& value, const at::Tensor& delays,
                                  const at::Tensor& weights) {
  TORCH_CHECK_VALUE(value.dim() == 3, kAggregation,
                    ": expected value [batch, times, channels], got ", value.sizes());
  check_kernel_input(kAggregation, "value", value);
  check_delays(kAggregation, delays, value.size(0));
  check_same_dtype(kAggregation, "value", value, "weights", weights);
  TORCH_CHECK_VALUE(
      weights.dim() == 2 && weights.size(0) == value.size(0) && weights.size(1) == delays.size(1),
      kAggregation, ": expected weights [", value.size(0), ", ", delays.size(1),
      "], one for each delay of each series, got ", weights.sizes());
  return aggregation(value, modulo(delays, value.size(1)), weights);
}

at::Tensor time_delay_correlation(const at::Tensor& query, const at::Tensor& key,
                                  const at::Tensor& delays) {
  TORCH_CHECK_VALUE(query.dim() == 3 && key.sizes() == query.sizes(), kCorrelation,
                    ": expected query and key of the same shape [batch, times, channels], got ",
                    query.sizes(), " and ", key.sizes());
  check_kernel_input(kCorrelation, "query", query);
  check_same_dtype(kCorrelation, "query", query, "key", key);
  check_delays(kCorrelation, delays, query.size(0));
  return correlation(query, key, modulo(delays, query.size(1)),
                     1.0 / static_cast<double>(query.size(2)));
}

}  // namespace flash
