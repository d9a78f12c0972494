#include "ops/double_backward.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>

#include "ops/dropout_mask.h"
#include "ops/dtypes.h"
#include "ops/math_attention.h"

namespace flash {
namespace {

using at::Tensor;
using torch::autograd::variable_list;

// The number of scores of one head that are in memory at a time, and the limits of the rows of a
// block: a matrix product with fewer rows is inefficient.
constexpr int64_t kScoresPerBlock = int64_t{1} << 16;
constexpr int64_t kFewestRows = 8;
constexpr int64_t kMostRows = 64;

int64_t rows_per_block(int64_t keys) {
  return std::clamp(kScoresPerBlock / std::max<int64_t>(keys, 1), kFewestRows, kMostRows);
}

constexpr int64_t kLevel = 0;  // of forward-mode differentiation, the only one in torch

const Tensor& tangent_of(const Tensor& t) { return t._fw_grad(kLevel); }

/// A tensor that the results of a block of rows depend on, and the part of it that they read.
struct Input {
  Tensor whole;     // undefined if the call has none
  int64_t dim = 0;  // the dimension of queries; 0: every block reads the whole tensor
  int64_t first = 0, count = 0;

  Tensor cut(const Tensor& t) const { return dim == 0 ? t : t.narrow(dim, first, count); }
  /// A fresh leaf.
  Tensor leaf() const { return whole.defined() ? cut(whole.detach()).requires_grad_() : Tensor(); }
  /// The leaf, with the tangent of `whole` if it has one.
  Tensor with_tangent(const Tensor& leaf) const {
    if (!whole.defined() || !tangent_of(whole).defined()) return leaf;
    return at::_make_dual(leaf, cut(tangent_of(whole)), kLevel);
  }
};

bool counts_queries(const Tensor& t, int64_t dim, int64_t queries) {
  return t.dim() >= -dim && t.size(dim) == queries && queries > 1;
}

/// A result in the shape of `whole`, from the parts of all blocks. Nothing is written in place,
/// since under vmap the parts may have a dimension that a tensor made here lacks.
class Sum {
 public:
  void add(const Input& input, const Tensor& part) {
    if (!input.whole.defined()) return;
    dim_ = input.dim;
    const bool zero = !part.defined();
    is_zero_ = is_zero_ && zero;
    if (dim_ != 0) {
      parts_.push_back(zero ? at::zeros_like(input.cut(input.whole)) : part);
    } else if (!zero) {
      sum_ = sum_.defined() ? sum_ + part : part;
    }
  }
  Tensor result() const {
    if (is_zero_) return {};
    return dim_ != 0 ? at::cat(parts_, dim_) : sum_;
  }

 private:
  int64_t dim_ = 0;
  bool is_zero_ = true;
  variable_list parts_;
  Tensor sum_;
};

class RowBlock {
 public:
  RowBlock(const BackwardCallInputs& call, const Sizes& sizes, int64_t first, int64_t count)
      : call_(call), sizes_(sizes), first_(first), count_(count) {
    const AttentionOptions& o = call.options;
    const int64_t queries = sizes.queries.expect_int();
    const auto by_query = [&](const std::optional<Tensor>& t, int64_t dim) {
      if (!t.has_value() || !t->is_floating_point()) return Input{};
      return counts_queries(*t, dim, queries) ? Input{*t, dim, first, count} : Input{*t};
    };
    inputs_ = {Input{call.grad_out, -2, first, count},
               by_query(call.grad_lse, -1),
               Input{call.query, -2, first, count},
               Input{call.key},
               Input{call.value},
               by_query(o.bias(), -2),
               by_query(o.alibi_slopes(), 0),
               by_query(o.sinks(), 0)};
    if (call.grad_lse.has_value()) inputs_[1] = {*call.grad_lse, -1, first, count};
    for (const Input& input : inputs_) {
      leaves_.push_back(input.leaf());
      values_.push_back(input.with_tangent(leaves_.back()));
    }
  }

  const Input& input(size_t i) const { return inputs_[i]; }

  /// The derivatives of sum_i <cotangents[i], gradient i> with respect to the `wanted` leaves.
  variable_list differentiate(const std::array<Tensor, kDifferentiable>& cotangents,
                              const std::array<bool, kTwiceDifferentiable>& wanted) {
    const at::AutoGradMode record(true);
    variable_list asked, given;
    for (size_t i = 0; i < kDifferentiable; ++i) {
      if (!cotangents[i].defined() || !leaves_[2 + i].defined()) continue;
      asked.push_back(leaves_[2 + i]);
      given.push_back(inputs_[2 + i].cut(cotangents[i]));
    }
    const variable_list gradients = first_gradients(asked, /*create_graph=*/true);
    variable_list outputs, output_cotangents;
    for (size_t i = 0; i < asked.size(); ++i) {
      if (!gradients[i].defined() || !gradients[i].requires_grad()) continue;
      outputs.push_back(gradients[i]);
      output_cotangents.push_back(given[i]);
    }
    variable_list by;
    for (size_t i = 0; i < kTwiceDifferentiable; ++i) {
      if (wanted[i] && leaves_[i].defined()) by.push_back(leaves_[i]);
    }
    variable_list result(kTwiceDifferentiable);
    if (outputs.empty() || by.empty()) return result;
    const variable_list found =
        torch::autograd::grad(outputs, by, output_cotangents, /*retain_graph=*/false,
                              /*create_graph=*/false, /*allow_unused=*/true);
    for (size_t i = 0, j = 0; i < kTwiceDifferentiable; ++i) {
      if (wanted[i] && leaves_[i].defined()) result[i] = found[j++];
    }
    return result;
  }

  /// The tangents of the gradients.
  variable_list tangents(const Needed& needed) {
    const at::AutoGradMode record(true);
    variable_list asked;
    for (size_t i = 0; i < kDifferentiable; ++i) {
      if (needed[i]) asked.push_back(leaves_[2 + i]);
    }
    const variable_list found = first_gradients(asked, /*create_graph=*/false);
    variable_list result(kDifferentiable);
    for (size_t i = 0, j = 0; i < kDifferentiable; ++i) {
      if (!needed[i]) continue;
      const Tensor& gradient = found[j++];
      if (gradient.defined()) result[i] = tangent_of(gradient);
    }
    return result;
  }

 private:
  variable_list first_gradients(const variable_list& by, bool create_graph) {
    AttentionOptions o = call_.options;
    const auto replace = [&](std::optional<Tensor>& option, size_t leaf) {
      if (values_[leaf].defined()) option = values_[leaf];
    };
    replace(o.alibi_slopes(), 6);
    replace(o.sinks(), 7);
    o = options_of_rows(o, sizes_, call_.query, first_, count_);
    if (values_[5].defined()) {
      // It is cut already, and needs the alignment that `options_of_rows` gives it.
      o.bias() = missing_head_dimension(sizes_, values_[5].dim(), 4) == 1 ? values_[5].unsqueeze(1)
                                                                          : values_[5];
    }
    std::optional<Tensor> keep;
    const Tensor q = with_heads(values_[2]);
    if (o.dropout() > 0) {
      keep = dropout_mask_from_seed(q.size(0), q.size(1), first_, count_, sizes_.keys.expect_int(),
                                    o.dropout(), call_.seed.item<int64_t>());
    }
    const bool with_lse = values_[1].defined();
    const MathResult result =
        math_attention(q, with_heads(values_[3]), with_heads(values_[4]), o, keep, with_lse);
    variable_list outputs = {result.out}, cotangents = {with_heads(values_[0])};
    if (with_lse && result.lse.requires_grad()) {  // without keys it is a constant
      outputs.push_back(result.lse);
      cotangents.push_back(sizes_.has_head_dimension ? values_[1] : values_[1].unsqueeze(1));
    }
    if (by.empty()) return {};
    return torch::autograd::grad(outputs, by, cotangents, /*retain_graph=*/create_graph,
                                 create_graph, /*allow_unused=*/true);
  }

  const BackwardCallInputs& call_;
  const Sizes& sizes_;
  const int64_t first_, count_;
  std::array<Input, kTwiceDifferentiable> inputs_;
  variable_list leaves_;
  variable_list values_;  // the leaves, dual tensors where there is a tangent
};

/// In 16 bits, every partial sum over the rows would be rounded.
BackwardCallInputs call_in_compute_dtype(const BackwardCallInputs& call) {
  return {in_compute_dtype(call.grad_out),
          in_compute_dtype(call.grad_lse),
          in_compute_dtype(call.query),
          in_compute_dtype(call.key),
          in_compute_dtype(call.value),
          in_compute_dtype(call.options),
          call.seed};
}

Tensor in_dtype_of(const Tensor& t, const std::optional<Tensor>& like) {
  return t.defined() ? in_dtype(t, like->scalar_type()) : t;
}

std::array<std::optional<Tensor>, kTwiceDifferentiable> inputs_of(const BackwardCallInputs& call) {
  const AttentionOptions& o = call.options;
  return {call.grad_out, call.grad_lse, call.query,       call.key,
          call.value,    o.bias(),      o.alibi_slopes(), o.sinks()};
}

}  // namespace

std::array<Tensor, kTwiceDifferentiable> second_gradients(
    const BackwardCallInputs& inputs, const std::array<Tensor, kDifferentiable>& cotangents,
    const std::array<bool, kTwiceDifferentiable>& wanted) {
  const BackwardCallInputs call = call_in_compute_dtype(inputs);
  std::array<Tensor, kDifferentiable> cotangents_computed;
  std::transform(cotangents.begin(), cotangents.end(), cotangents_computed.begin(),
                 [](const Tensor& t) { return t.defined() ? in_compute_dtype(t) : t; });
  const Sizes sizes = check_attention(call.query, call.key, call.value, call.options);
  const int64_t queries = sizes.queries.expect_int();
  const int64_t step = rows_per_block(sizes.keys.expect_int());
  std::array<Sum, kTwiceDifferentiable> sums;
  for (int64_t first = 0; first < queries; first += step) {
    RowBlock rows(call, sizes, first, std::min(step, queries - first));
    const variable_list parts = rows.differentiate(cotangents_computed, wanted);
    for (size_t i = 0; i < kTwiceDifferentiable; ++i) sums[i].add(rows.input(i), parts[i]);
  }
  const auto like = inputs_of(inputs);
  std::array<Tensor, kTwiceDifferentiable> result;
  for (size_t i = 0; i < result.size(); ++i) result[i] = in_dtype_of(sums[i].result(), like[i]);
  return result;
}

std::array<Tensor, kDifferentiable> gradient_tangents(const BackwardCallInputs& inputs,
                                                      const Needed& needed) {
  const BackwardCallInputs call = call_in_compute_dtype(inputs);
  const Sizes sizes = check_attention(call.query, call.key, call.value, call.options);
  const int64_t queries = sizes.queries.expect_int();
  const int64_t step = rows_per_block(sizes.keys.expect_int());
  std::array<Sum, kDifferentiable> sums;
  for (int64_t first = 0; first < queries; first += step) {
    RowBlock rows(call, sizes, first, std::min(step, queries - first));
    const variable_list parts = rows.tangents(needed);
    for (size_t i = 0; i < kDifferentiable; ++i) sums[i].add(rows.input(2 + i), parts[i]);
  }
  const auto like = inputs_of(inputs);
  std::array<Tensor, kDifferentiable> result;
  for (size_t i = 0; i < result.size(); ++i) result[i] = in_dtype_of(sums[i].result(), like[2 + i]);
  return result;
}

ForwardTangents forward_tangents(const Tensor& query, const Tensor& key, const Tensor& value,
                                 const AttentionOptions& options, const Tensor& seed) {
  const Sizes sizes = check_attention(query, key, value, options);
  const int64_t queries = sizes.queries.expect_int();
  const int64_t step = rows_per_block(sizes.keys.expect_int());
  const Tensor q = with_heads(query), k = with_heads(key), v = with_heads(value);
  variable_list outs, lses;
  for (int64_t first = 0; first < queries; first += step) {
    const int64_t count = std::min(step, queries - first);
    std::optional<Tensor> keep;
    if (options.dropout() > 0) {
      keep = dropout_mask_from_seed(q.size(0), q.size(1), first, count, k.size(2),
                                    options.dropout(), seed.item<int64_t>());
    }
    const MathResult rows =
        math_attention(q.narrow(2, first, count), k, v,
                       options_of_rows(options, sizes, q, first, count), keep, /*with_lse=*/true);
    const auto tangent = [](const Tensor& t) {
      return tangent_of(t).defined() ? tangent_of(t) : at::zeros_like(t);
    };
    outs.push_back(tangent(rows.out));
    lses.push_back(tangent(rows.lse));
  }
  if (outs.empty()) {
    outs = {at::empty({q.size(0), q.size(1), 0, v.size(3)}, q.options())};
    lses = {at::empty({q.size(0), q.size(1), 0}, in_compute_dtype(q).options())};
  }
  const auto joined = [&](const variable_list& parts) {
    const Tensor all = at::cat(parts, 2);
    return sizes.has_head_dimension ? all : all.squeeze(1);
  };
  return {joined(outs), joined(lses)};
}

}  // namespace flash
