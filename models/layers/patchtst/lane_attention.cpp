#include "layers/patchtst/lane_attention.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <flash_attention/layer_kernels.h>
#include <torch/torch.h>

#include <algorithm>
#include <vector>

#include "layers/common/linear.h"

namespace flash::models {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// The most positions: the scores of sixteen problems of this length take 256 KiB in float.
constexpr int64_t kMostPositions = 64;

/// Problems of a task: as many as the widest registers have lanes.
constexpr int64_t kProblemsPerTask = 16;

/// `t` [B, H, T, D] or a copy, with contiguous rows and heads at one distance in all of the batch.
Tensor with_even_heads(const Tensor& t) {
  const bool is_even =
      t.stride(3) == 1 && (t.size(0) == 1 || t.stride(0) == t.size(1) * t.stride(1));
  return is_even ? t : t.contiguous();
}

/// Calls `call(T(), problems, first, scratch)` for parts of the problems, `first` being the index
/// of the first of a part.
template <class Call>
void for_problems(const Tensor& q, const Tensor& k, const Tensor& v, double scale,
                  const Call& call) {
  const int64_t problems = q.size(0) * q.size(1);
  const int64_t tasks = (problems + kProblemsPerTask - 1) / kProblemsPerTask;
  AT_DISPATCH_FLOATING_TYPES(q.scalar_type(), "lane_attention", [&] {
    at::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
      const int64_t first = begin * kProblemsPerTask;
      const kernels::LaneAttention<scalar_t> part = {
          .query = q.const_data_ptr<scalar_t>() + first * q.stride(1),
          .key = k.const_data_ptr<scalar_t>() + first * k.stride(1),
          .value = v.const_data_ptr<scalar_t>() + first * v.stride(1),
          .query_problem = q.stride(1),
          .key_problem = k.stride(1),
          .value_problem = v.stride(1),
          .out_problem = q.size(2) * v.size(3),
          .query_row = q.stride(2),
          .key_row = k.stride(2),
          .value_row = v.stride(2),
          .out_row = v.size(3),
          .problems = std::min(end * kProblemsPerTask, problems) - first,
          .queries = q.size(2),
          .keys = k.size(2),
          .head_dim = q.size(3),
          .value_dim = v.size(3),
          .scale = static_cast<scalar_t>(scale)};
      std::vector<scalar_t> scratch(static_cast<size_t>(kernels::lane_attention_scratch(part)));
      call(scalar_t(), part, first, scratch.data());
    });
  });
}

/// The gradients in operators of ATen, which record a graph.
variable_list recorded(const Tensor& q, const Tensor& k, const Tensor& v, double scale,
                       const Tensor& g) {
  const Tensor weights = q.matmul(k.transpose(2, 3)).mul(scale).softmax(-1);
  const Tensor of_weights = g.matmul(v.transpose(2, 3));
  const Tensor delta = (weights * of_weights).sum(-1, /*keepdim=*/true);
  const Tensor of_scores = weights * (of_weights - delta) * scale;
  return {of_scores.matmul(k), of_scores.transpose(2, 3).matmul(q),
          weights.transpose(2, 3).matmul(g), Tensor()};
}

class LaneAttentionFunction : public torch::autograd::Function<LaneAttentionFunction> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& query, const Tensor& key,
                        const Tensor& value, double scale) {
    context->save_for_backward({query, key, value});
    context->saved_data["scale"] = scale;
    const Tensor q = with_even_heads(query), k = with_even_heads(key), v = with_even_heads(value);
    const int64_t size = q.size(2) * v.size(3);
    const Tensor out = at::empty({q.size(0), q.size(1), q.size(2), v.size(3)}, q.options());
    for_problems(q, k, v, scale, [&]<class T>(T, const auto& part, int64_t first, T* scratch) {
      kernels::lane_attention(part, out.mutable_data_ptr<T>() + first * size, scratch);
    });
    return out;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const variable_list saved = context->get_saved_variables();
    const double scale = context->saved_data["scale"].toDouble();
    if (at::GradMode::is_enabled() || !is_plain(gradients[0])) {
      return recorded(saved[0], saved[1], saved[2], scale, gradients[0]);
    }
    const Tensor q = with_even_heads(saved[0]), k = with_even_heads(saved[1]),
                 v = with_even_heads(saved[2]), g = gradients[0].contiguous();
    const auto empty_like = [](const Tensor& t) { return at::empty(t.sizes(), t.options()); };
    const Tensor of_q = empty_like(q), of_k = empty_like(k), of_v = empty_like(v);
    for_problems(q, k, v, scale, [&]<class T>(T, const auto& part, int64_t first, T* scratch) {
      const auto at = [first](const Tensor& t) { return first * t.size(2) * t.size(3); };
      kernels::lane_attention_backward<T>(part,
                                          {.out = g.const_data_ptr<T>() + at(g),
                                           .query = of_q.mutable_data_ptr<T>() + at(of_q),
                                           .key = of_k.mutable_data_ptr<T>() + at(of_k),
                                           .value = of_v.mutable_data_ptr<T>() + at(of_v)},
                                          scratch);
    });
    return {of_q, of_k, of_v, Tensor()};
  }
};

}  // namespace

bool fits_lanes(const Tensor& query, const Tensor& key, const Tensor& value) {
  const auto is_short = [](const Tensor& t) {
    return t.size(2) >= 1 && t.size(2) <= kMostPositions;
  };
  return fits_kernels(query) && is_short(query) && is_short(key) && is_plain(query) &&
         is_plain(key) && is_plain(value);
}

Tensor lane_attention(const Tensor& query, const Tensor& key, const Tensor& value, double scale) {
  return LaneAttentionFunction::apply(query, key, value, scale);
}

}  // namespace flash::models
