#include "losses/distributions.h"

#include <torch/torch.h>

#include <cmath>
#include <functional>
#include <limits>
#include <numbers>

#include "losses/incomplete_beta.h"

namespace flash::models {
namespace {

at::Tensor rescaled(const at::Tensor& x, const at::Tensor& loc, const at::Tensor& scale) {
  return scale.defined() ? at::addcmul(loc, x, scale) : x;
}

at::Tensor times(const at::Tensor& x, const at::Tensor& scale) {
  return scale.defined() ? x * scale : x;
}

/// log(p / (1 - p)), with p clamped to [eps, 1 - eps] as in torch.distributions.
at::Tensor log_odds(const at::Tensor& probs) {
  return at::logit(probs, probs.scalar_type() == at::kFloat
                              ? double{std::numeric_limits<float>::epsilon()}
                              : std::numeric_limits<double>::epsilon());
}

double normal_quantile(double q) {
  return std::numbers::sqrt2 *
         at::erfinv(at::scalar_tensor(2.0 * q - 1.0, at::kDouble)).item<double>();
}

/// The quantile of counts by bisection, given their cumulative distribution function.
at::Tensor count_quantile(const at::Tensor& mean, const at::Tensor& variance, double q,
                          const std::function<at::Tensor(const at::Tensor& k)>& cdf) {
  // Cantelli's inequality bounds any quantile by the mean and the standard deviation.
  const at::Tensor deviation = variance.sqrt();
  at::Tensor below = (mean - deviation * std::sqrt((1.0 - q) / q)).floor().clamp_min(0.0) - 1.0;
  at::Tensor above = (mean + deviation * std::sqrt(q / (1.0 - q))).ceil().clamp_min(0.0) + 1.0;
  const double widest = (above - below).nan_to_num(0.0, 0.0, 0.0).max().item<double>();
  for (double width = widest; width > 1.0; width = std::ceil(width / 2.0)) {
    const at::Tensor middle = ((below + above) / 2.0).floor();
    const at::Tensor enough = (cdf(middle.clamp_min(0.0)) >= q).logical_and(middle >= 0.0);
    above = at::where(enough, middle, above);
    below = at::where(enough, below, middle);
  }
  return above;
}

class Normal final : public Distribution {
 public:
  const char* name() const override { return "Normal"; }
  std::vector<std::string> parameter_names() const override { return {"-loc", "-scale"}; }

  Tensors scale_decouple(const Tensors& raw, const at::Tensor& loc,
                         const at::Tensor& scale) const override {
    return {rescaled(raw[0], loc, scale), times(at::softplus(raw[1]) + 0.2, scale)};
  }
  at::Tensor log_prob(const Tensors& parameters, const at::Tensor& y) const override {
    const at::Tensor z = (y - parameters[0]) / parameters[1];
    return -0.5 * z.square() - parameters[1].log() - 0.5 * std::log(2.0 * std::numbers::pi);
  }
  at::Tensor mean(const Tensors& parameters) const override { return parameters[0]; }
  at::Tensor quantile(const Tensors& parameters, double q) const override {
    return parameters[0] + parameters[1] * normal_quantile(q);
  }
};

class StudentT final : public Distribution {
 public:
  const char* name() const override { return "StudentT"; }
  std::vector<std::string> parameter_names() const override { return {"-df", "-loc", "-scale"}; }

  Tensors scale_decouple(const Tensors& raw, const at::Tensor& loc,
                         const at::Tensor& scale) const override {
    return {3.0 + at::softplus(raw[0]), rescaled(raw[1], loc, scale),
            times(at::softplus(raw[2]) + 0.1, scale)};
  }
  at::Tensor log_prob(const Tensors& parameters, const at::Tensor& y) const override {
    const at::Tensor& df = parameters[0];
    const at::Tensor z = (y - parameters[1]) / parameters[2];
    const at::Tensor half = 0.5 * (df + 1.0);
    return half.lgamma() - (0.5 * df).lgamma() - 0.5 * (df * std::numbers::pi).log() -
           parameters[2].log() - half * at::log1p(z.square() / df);
  }
  at::Tensor mean(const Tensors& parameters) const override { return parameters[1]; }

  at::Tensor quantile(const Tensors& parameters, double q) const override {
    return parameters[1] + parameters[2] * standard_quantile(parameters[0], q);
  }

 private:
  static at::Tensor standard_quantile(const at::Tensor& df, double q) {
    if (q == 0.5) return at::zeros_like(df);
    const double tail = std::min(q, 1.0 - q);
    // P(T > t) = tail by Newton's method, from the first two terms of the expansion in 1 / df
    // (Abramowitz and Stegun 26.7.5), which underestimate t. The tail is convex, so no step
    // overshoots.
    const double z = normal_quantile(1.0 - tail);
    at::Tensor t = z + (z * z * z + z) / (4.0 * df);
    const at::Tensor half = at::full_like(df, 0.5);
    const at::Tensor log_norm =
        (0.5 * (df + 1.0)).lgamma() - (0.5 * df).lgamma() - 0.5 * (df * std::numbers::pi).log();
    for (int step = 0; step < 60; ++step) {
      const at::Tensor beyond = 0.5 * incomplete_beta(0.5 * df, half, df / (df + t.square()));
      const at::Tensor density = (log_norm - 0.5 * (df + 1.0) * at::log1p(t.square() / df)).exp();
      const at::Tensor change = (beyond - tail) / density;
      t = t + change;
      // Newton's method converges quadratically: the error is of the order of the step's square.
      if (change.abs().le(1e-8 * t).logical_or(change.isnan()).all().item<bool>()) break;
    }
    return q < 0.5 ? -t : t;
  }
};

class Poisson final : public Distribution {
 public:
  const char* name() const override { return "Poisson"; }
  std::vector<std::string> parameter_names() const override { return {"-loc"}; }

  Tensors scale_decouple(const Tensors& raw, const at::Tensor& loc,
                         const at::Tensor& scale) const override {
    return {at::softplus(rescaled(raw[0], loc, scale)) + 1e-10};
  }
  const char* support() const override { return "at least 0"; }
  at::Tensor in_support(const at::Tensor& y) const override { return y >= 0.0; }
  at::Tensor log_prob(const Tensors& parameters, const at::Tensor& y) const override {
    return at::xlogy(y, parameters[0]) - parameters[0] - (y + 1.0).lgamma();
  }
  at::Tensor mean(const Tensors& parameters) const override { return parameters[0]; }
  at::Tensor quantile(const Tensors& parameters, double q) const override {
    const at::Tensor& rate = parameters[0];
    return count_quantile(
        rate, rate, q, [&](const at::Tensor& k) { return at::special_gammaincc(k + 1.0, rate); });
  }
};

class NegativeBinomial final : public Distribution {
 public:
  const char* name() const override { return "NegativeBinomial"; }
  std::vector<std::string> parameter_names() const override { return {"-total_count", "-logits"}; }

  Tensors scale_decouple(const Tensors& raw, const at::Tensor& loc,
                         const at::Tensor& scale) const override {
    const at::Tensor mu = rescaled(at::softplus(raw[0]) + 1e-8, loc, scale);
    const at::Tensor raw_alpha = at::softplus(raw[1]) + 1e-8;
    const at::Tensor alpha = scale.defined() ? raw_alpha / (scale + 1.0) : raw_alpha / 2.0;
    const at::Tensor product = mu * alpha;
    return {1.0 / alpha, product / (1.0 + product) + 1e-8};
  }
  void check_parameters(const Tensors& parameters) const override {
    const at::Tensor& probs = parameters[1];
    TORCH_CHECK_VALUE(
        at::logical_and(probs >= 0.0, probs < 1.0).all().item<bool>(),
        "DistributionLoss(NegativeBinomial): expected probabilities in [0, 1), got ",
        probs.min().item<double>(), " to ", probs.max().item<double>(),
        "; a window scaler's shift may make the mean negative, so use the scaler \"identity\"");
  }
  const char* support() const override { return "at least 0"; }
  at::Tensor in_support(const at::Tensor& y) const override { return y >= 0.0; }
  at::Tensor log_prob(const Tensors& parameters, const at::Tensor& y) const override {
    const at::Tensor& count = parameters[0];
    const at::Tensor logits = log_odds(parameters[1]);
    return count * at::log_sigmoid(-logits) + y * at::log_sigmoid(logits) + (count + y).lgamma() -
           (y + 1.0).lgamma() - count.lgamma();
  }
  at::Tensor mean(const Tensors& parameters) const override {
    return parameters[0] * log_odds(parameters[1]).exp();
  }
  at::Tensor quantile(const Tensors& parameters, double q) const override {
    const at::Tensor& count = parameters[0];
    const at::Tensor failure = 1.0 - parameters[1];
    const at::Tensor average = mean(parameters);
    return count_quantile(average, average / failure, q, [&](const at::Tensor& k) {
      return incomplete_beta(count, k + 1.0, failure);
    });
  }
};

class Bernoulli final : public Distribution {
 public:
  const char* name() const override { return "Bernoulli"; }
  std::vector<std::string> parameter_names() const override { return {"-logits"}; }

  Tensors scale_decouple(const Tensors& raw, const at::Tensor&, const at::Tensor&) const override {
    return {raw[0].sigmoid()};
  }
  const char* support() const override { return "0 or 1"; }
  at::Tensor in_support(const at::Tensor& y) const override {
    return at::logical_or(y == 0.0, y == 1.0);
  }
  at::Tensor log_prob(const Tensors& parameters, const at::Tensor& y) const override {
    return -at::binary_cross_entropy_with_logits(log_odds(parameters[0]), y, {}, {},
                                                 at::Reduction::None);
  }
  at::Tensor mean(const Tensors& parameters) const override { return parameters[0]; }
  at::Tensor quantile(const Tensors& parameters, double q) const override {
    return (1.0 - parameters[0] < q).to(parameters[0].scalar_type());
  }
};

}  // namespace

const std::vector<const Distribution*>& distributions() {
  static const Bernoulli bernoulli;
  static const NegativeBinomial negative_binomial;
  static const Normal normal;
  static const Poisson poisson;
  static const StudentT student_t;
  static const std::vector<const Distribution*> all{&bernoulli, &negative_binomial, &normal,
                                                    &poisson, &student_t};
  return all;
}

}  // namespace flash::models
