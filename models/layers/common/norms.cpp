#include "layers/common/norms.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <flash_attention/dropout.h>
#include <flash_attention/layer_kernels.h>
#include <torch/torch.h>

#include <algorithm>
#include <tuple>
#include <utility>
#include <vector>

#include "layers/common/batch_statistics.h"
#include "layers/common/linear.h"
#include "layers/common/row_blocks.h"

namespace flash::models {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// Calls `call(T(), piece, first, rows)` for each piece of the rows of x, T being its type.
template <class Call>
void for_pieces(const Tensor& x, int64_t rows, const Call& call) {
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "norm", [&] {
    at::parallel_for(0, number_of_pieces(rows), 1, [&](int64_t begin, int64_t end) {
      for (int64_t piece = begin; piece < end; ++piece) {
        const int64_t first = piece * kRowsPerPiece;
        call(scalar_t(), piece, first, std::min(kRowsPerPiece, rows - first));
      }
    });
  });
}

class LayerNormRows : public torch::autograd::Function<LayerNormRows> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& weight,
                        const Tensor& bias, double epsilon) {
    const auto [out, mean, reciprocal] =
        at::native_layer_norm(x, weight.sizes(), weight, bias, epsilon);
    context->save_for_backward({x, weight, bias, mean, reciprocal});
    return out;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const variable_list saved = context->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], &mean = saved[3], &reciprocal = saved[4];
    if (at::GradMode::is_enabled() || !is_plain(gradients[0])) {
      const auto [of_x, of_weight, of_bias] = at::native_layer_norm_backward(
          gradients[0], x, weight.sizes(), mean, reciprocal, weight, saved[2], {true, true, true});
      return {of_x, of_weight, of_bias, Tensor()};
    }
    const int64_t width = weight.numel(), rows = x.numel() / std::max<int64_t>(1, width);
    const Tensor g = gradients[0].contiguous(), of_x = at::empty_like(x),
                 sums = at::zeros({number_of_pieces(rows), 2, width}, x.options());
    for_pieces(x, rows, [&]<class T>(T, int64_t piece, int64_t first, int64_t count) {
      const int64_t at = first * width;
      kernels::layer_norm_backward<T>({.x = x.const_data_ptr<T>() + at,
                                       .mean = mean.const_data_ptr<T>() + first,
                                       .reciprocal = reciprocal.const_data_ptr<T>() + first,
                                       .weight = weight.const_data_ptr<T>(),
                                       .rows = count,
                                       .width = width},
                                      g.const_data_ptr<T>() + at, of_x.mutable_data_ptr<T>() + at,
                                      sums.mutable_data_ptr<T>() + piece * 2 * width);
    });
    const Tensor total = sums.sum(0);
    return {of_x, total[0], total[1], Tensor()};
  }
};

/// LayerNorm(residual + dropout(x)), rows at a time, so that the norm finds the sum in the cache.
class LayerNormOfSum : public torch::autograd::Function<LayerNormOfSum> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& residual,
                        const Tensor& weight, const Tensor& bias, double epsilon, double p) {
    const int64_t width = weight.numel(), rows = x.numel() / width;
    const int64_t seed = BlockedDropout(p).seed();
    const Tensor sum = at::empty_like(x), out = at::empty_like(x),
                 statistics = at::empty({2, rows}, x.options());
    for_pieces(x, rows, [&]<class T>(T, int64_t, int64_t first, int64_t count) {
      const int64_t at = first * width;
      T* const to = sum.mutable_data_ptr<T>() + at;
      T* const mean = statistics.mutable_data_ptr<T>() + first;
      kernels::dropout_add({at, count * width, p, seed}, x.const_data_ptr<T>() + at,
                           residual.const_data_ptr<T>() + at, to);
      kernels::layer_norm<T>(to, weight.const_data_ptr<T>(), bias.const_data_ptr<T>(),
                             static_cast<T>(epsilon), count, width, out.mutable_data_ptr<T>() + at,
                             mean, mean + rows);
    });
    context->save_for_backward({sum, weight, statistics});
    context->saved_data["dropout"] = std::tuple(p, seed);
    return out;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    refuse_second_derivative("layer norm of a sum with dropout");
    const variable_list saved = context->get_saved_variables();
    const Tensor &sum = saved[0], &weight = saved[1], &statistics = saved[2];
    const auto dropout = context->saved_data["dropout"].to<std::tuple<double, int64_t>>();
    const int64_t width = weight.numel(), rows = sum.numel() / width;
    const Tensor g = gradients[0].contiguous(), of_x = at::empty_like(sum),
                 of_residual = at::empty_like(sum),
                 sums = at::zeros({number_of_pieces(rows), 2, width}, sum.options());
    for_pieces(sum, rows, [&]<class T>(T, int64_t piece, int64_t first, int64_t count) {
      const int64_t at = first * width;
      const T* const mean = statistics.const_data_ptr<T>() + first;
      T* const to = of_residual.mutable_data_ptr<T>() + at;
      kernels::layer_norm_backward<T>({.x = sum.const_data_ptr<T>() + at,
                                       .mean = mean,
                                       .reciprocal = mean + rows,
                                       .weight = weight.const_data_ptr<T>(),
                                       .rows = count,
                                       .width = width},
                                      g.const_data_ptr<T>() + at, to,
                                      sums.mutable_data_ptr<T>() + piece * 2 * width);
      kernels::dropout<T>({at, count * width, std::get<0>(dropout), std::get<1>(dropout)}, to,
                          of_x.mutable_data_ptr<T>() + at);
    });
    const Tensor total = sums.sum(0);
    return {of_x, of_residual, total[0], total[1], Tensor(), Tensor()};
  }
};

/// The mean and the variance of columns of `rows` rows, from the moments [pieces, 2, width] of the
/// pieces.
std::pair<Tensor, Tensor> combined(const Tensor& moments, int64_t rows) {
  const int64_t pieces = moments.size(0), width = moments.size(2);
  const Tensor statistics = at::empty({2, width}, moments.options());
  // Chan, Golub, LeVeque, "Algorithms for Computing the Sample Variance", 1983, equation 2.1.
  AT_DISPATCH_FLOATING_TYPES(moments.scalar_type(), "norm", [&] {
    std::vector<double> mean(static_cast<size_t>(width)), squares(static_cast<size_t>(width));
    const auto* of_piece = moments.const_data_ptr<scalar_t>();
    for (int64_t piece = 0; piece < pieces; ++piece, of_piece += 2 * width) {
      const auto before = static_cast<double>(piece * kRowsPerPiece);
      const double count =
          std::min(static_cast<double>(kRowsPerPiece), static_cast<double>(rows) - before);
      const double share = count / (before + count), weight = before * share;
      for (int64_t c = 0; c < width; ++c) {
        const auto i = static_cast<size_t>(c);
        const double difference = of_piece[c] - mean[i];
        mean[i] += share * difference;
        squares[i] += of_piece[width + c] + weight * difference * difference;
      }
    }
    auto* const out = statistics.mutable_data_ptr<scalar_t>();
    for (int64_t c = 0; c < width; ++c) {
      out[c] = static_cast<scalar_t>(mean[static_cast<size_t>(c)]);
      out[width + c] =
          static_cast<scalar_t>(squares[static_cast<size_t>(c)] / static_cast<double>(rows));
    }
  });
  return {statistics[0], statistics[1]};
}

std::pair<Tensor, Tensor> column_statistics(const Tensor& x) {
  const int64_t rows = x.size(0), width = x.size(1);
  const Tensor moments = at::empty({number_of_pieces(rows), 2, width}, x.options());
  for_pieces(x, rows, [&]<class T>(T, int64_t piece, int64_t first, int64_t count) {
    kernels::column_moments(x.const_data_ptr<T>() + first * width, count, width,
                            moments.mutable_data_ptr<T>() + piece * 2 * width);
  });
  return combined(moments, rows);
}

/// The norm with the statistics of a batch, as if they were running ones.
Tensor batch_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& mean,
                  const Tensor& variance, double epsilon) {
  return std::get<0>(at::native_batch_norm(x, weight, bias, mean, variance, /*training=*/false,
                                           /*momentum=*/0.0, epsilon));
}

/// A batch norm below autograd, for its backward.
struct BatchNorm {
  Tensor x, weight, mean, reciprocal;

  int64_t rows() const { return x.size(0); }
  int64_t width() const { return x.size(1); }
  template <class T>
  kernels::NormRows<T> part(int64_t first, int64_t count) const {
    return {.x = x.const_data_ptr<T>() + first * width(),
            .mean = mean.const_data_ptr<T>(),
            .reciprocal = reciprocal.const_data_ptr<T>(),
            .weight = weight.const_data_ptr<T>(),
            .rows = count,
            .width = width()};
  }
  /// The sums over rows of the gradient g, and of its product with the normalized rows: [2, width].
  Tensor sums(const Tensor& g) const {
    const Tensor of_pieces = at::empty({number_of_pieces(rows()), 2, width()}, x.options());
    for_pieces(x, rows(), [&]<class T>(T, int64_t piece, int64_t first, int64_t count) {
      kernels::batch_norm_sums<T>(part<T>(first, count), g.const_data_ptr<T>() + first * width(),
                                  of_pieces.mutable_data_ptr<T>() + piece * 2 * width());
    });
    return of_pieces.sum(0);
  }
};

class BatchNormRows : public torch::autograd::Function<BatchNormRows> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& weight,
                        const Tensor& bias, const Tensor& mean, const Tensor& variance,
                        double epsilon) {
    context->save_for_backward({x, weight, mean, (variance + epsilon).rsqrt()});
    context->saved_data["epsilon"] = epsilon;
    return batch_norm(x, weight, bias, mean, variance, epsilon);
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const variable_list saved = context->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], &mean = saved[2], &reciprocal = saved[3];
    if (at::GradMode::is_enabled() || !is_plain(gradients[0])) {
      const auto [of_x, of_weight, of_bias] = at::native_batch_norm_backward(
          gradients[0], x, weight, /*running_mean=*/{}, /*running_var=*/{}, mean, reciprocal,
          /*train=*/true, context->saved_data["epsilon"].toDouble(), {true, true, true});
      return {of_x, of_weight, of_bias, Tensor(), Tensor(), Tensor()};
    }
    const BatchNorm norm = {x, weight, mean, reciprocal};
    const Tensor g = gradients[0].contiguous(), of_x = at::empty_like(x), sums = norm.sums(g),
                 means = sums / static_cast<double>(norm.rows());
    for_pieces(x, norm.rows(), [&]<class T>(T, int64_t, int64_t first, int64_t count) {
      const int64_t at = first * norm.width();
      kernels::batch_norm_backward<T>(norm.part<T>(first, count), g.const_data_ptr<T>() + at,
                                      means.const_data_ptr<T>(), of_x.mutable_data_ptr<T>() + at);
    });
    return {of_x, sums[1], sums[0], Tensor(), Tensor(), Tensor()};
  }
};

/// Whether the functions above support x.
bool fits(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  const auto fits_x = [&](const Tensor& t) {
    return t.defined() && t.scalar_type() == x.scalar_type() && is_plain(t);
  };
  return fits_kernels(x) && is_plain(x) && fits_x(weight) && fits_x(bias);
}

/// As torch does after a batch of `rows` rows with these statistics.
void update_running_statistics(torch::nn::BatchNorm1dImpl& norm, const Tensor& mean,
                               const Tensor& variance, int64_t rows) {
  if (!norm.options.track_running_stats()) return;
  const at::NoGradGuard no_grad;
  norm.num_batches_tracked.add_(1);
  const double share =
      norm.options.momentum().value_or(1.0 / norm.num_batches_tracked.item<double>());
  const double unbiased = static_cast<double>(rows) / static_cast<double>(rows - 1);
  // Like torch, without a new version: a backward in evaluation mode may still refer to them.
  norm.running_mean.variable_data().mul_(1.0 - share).add_(mean, share);
  norm.running_var.variable_data().mul_(1.0 - share).add_(variance, share * unbiased);
}

/// The batch norm of residual + dropout(x), with the statistics of the batch.
class BatchNormOfSum : public torch::autograd::Function<BatchNormOfSum> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& residual,
                        const Tensor& weight, const Tensor& bias, torch::nn::BatchNorm1dImpl* norm,
                        double p) {
    const int64_t rows = x.size(0), width = x.size(1), seed = BlockedDropout(p).seed();
    const double epsilon = norm->options.eps();
    const Tensor sum = at::empty_like(x),
                 moments = at::empty({number_of_pieces(rows), 2, width}, x.options());
    for_pieces(x, rows, [&]<class T>(T, int64_t piece, int64_t first, int64_t count) {
      const int64_t at = first * width;
      T* const to = sum.mutable_data_ptr<T>() + at;
      kernels::dropout_add({at, count * width, p, seed}, x.const_data_ptr<T>() + at,
                           residual.const_data_ptr<T>() + at, to);
      kernels::column_moments<T>(to, count, width,
                                 moments.mutable_data_ptr<T>() + piece * 2 * width);
    });
    const auto [mean, variance] = combined(moments, rows);
    update_running_statistics(*norm, mean, variance, rows);
    context->save_for_backward({sum, weight, mean, (variance + epsilon).rsqrt()});
    context->saved_data["dropout"] = std::tuple(p, seed);
    return batch_norm(sum, weight, bias, mean, variance, epsilon);
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    refuse_second_derivative("batch norm of a sum with dropout");
    const variable_list saved = context->get_saved_variables();
    const auto dropout = context->saved_data["dropout"].to<std::tuple<double, int64_t>>();
    const BatchNorm norm = {saved[0], saved[1], saved[2], saved[3]};
    const Tensor g = gradients[0].contiguous(), of_x = at::empty_like(norm.x),
                 of_residual = at::empty_like(norm.x), sums = norm.sums(g),
                 means = sums / static_cast<double>(norm.rows());
    for_pieces(norm.x, norm.rows(), [&]<class T>(T, int64_t, int64_t first, int64_t count) {
      const int64_t at = first * norm.width();
      T* const to = of_residual.mutable_data_ptr<T>() + at;
      kernels::batch_norm_backward<T>(norm.part<T>(first, count), g.const_data_ptr<T>() + at,
                                      means.const_data_ptr<T>(), to);
      kernels::dropout<T>({at, count * norm.width(), std::get<0>(dropout), std::get<1>(dropout)},
                          to, of_x.mutable_data_ptr<T>() + at);
    });
    return {of_x, of_residual, sums[1], sums[0], Tensor(), Tensor()};
  }
};

}  // namespace

Tensor layer_normalized(const Tensor& x, torch::nn::LayerNormImpl& norm) {
  const bool ours = at::GradMode::is_enabled() && fits(x, norm.weight, norm.bias);
  if (!ours) return norm.forward(x);
  return LayerNormRows::apply(x.contiguous(), norm.weight.contiguous(), norm.bias.contiguous(),
                              norm.options.eps());
}

Tensor layer_normalized_sum(const Tensor& x, const Tensor& residual, double dropout, bool training,
                            torch::nn::LayerNormImpl& norm) {
  const bool fuses = training && dropout > 0.0 && x.sizes() == residual.sizes() && x.numel() > 0 &&
                     residual.scalar_type() == x.scalar_type() && fits(x, norm.weight, norm.bias);
  if (!fuses) return layer_normalized(dropout_add(x, residual, dropout, training), norm);
  return LayerNormOfSum::apply(x.contiguous(), residual.contiguous(), norm.weight.contiguous(),
                               norm.bias.contiguous(), norm.options.eps(), dropout);
}

Tensor batch_normalized(const Tensor& x, torch::nn::BatchNorm1dImpl& norm) {
  if (norm.is_training() && has_shared_statistics()) return shared_batch_norm(x, norm);
  // torch refuses a single row, whose variance is not defined.
  const bool ours = norm.is_training() && x.size(0) > 1 && fits(x, norm.weight, norm.bias);
  if (!ours) return norm.forward(x);
  const Tensor rows = x.contiguous();
  const auto [mean, variance] = column_statistics(rows);
  update_running_statistics(norm, mean, variance, rows.size(0));
  return BatchNormRows::apply(rows, norm.weight.contiguous(), norm.bias.contiguous(), mean,
                              variance, norm.options.eps());
}

Tensor batch_normalized_sum(const Tensor& x, const Tensor& residual, double dropout, bool training,
                            torch::nn::BatchNorm1dImpl& norm) {
  const bool fuses = training && dropout > 0.0 && norm.is_training() && !has_shared_statistics() &&
                     x.size(0) > 1 && x.sizes() == residual.sizes() &&
                     residual.scalar_type() == x.scalar_type() && fits(x, norm.weight, norm.bias);
  if (!fuses) return batch_normalized(dropout_add(x, residual, dropout, training), norm);
  return BatchNormOfSum::apply(x.contiguous(), residual.contiguous(), norm.weight.contiguous(),
                               norm.bias.contiguous(), &norm, dropout);
}

}  // namespace flash::models
