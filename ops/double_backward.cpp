#include "ops/double_backward.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>

#include "ops/definition.h"

namespace flash {
namespace {

using at::Tensor;
using torch::autograd::variable_list;

// Scores of a head that are held at once, and rows of which a product is efficient.
constexpr int64_t kScoresAtOnce = int64_t{1} << 16;
constexpr int64_t kFewestRows = 8;
constexpr int64_t kMostRows = 64;

int64_t rows_at_once(int64_t keys) {
  return std::clamp(kScoresAtOnce / std::max<int64_t>(keys, 1), kFewestRows, kMostRows);
}

constexpr int64_t kLevel = 0;  // of forward-mode differentiation: torch has no other

const Tensor& tangent_of(const Tensor& t) { return t._fw_grad(kLevel); }

/// A tensor that the result of some rows is a function of, and the rows of it that they read.
struct Input {
  Tensor whole;     // undefined if the call has none
  int64_t dim = 0;  // the dimension that counts queries; 0: every row of queries reads all of it
  int64_t first = 0, count = 0;

  Tensor cut(const Tensor& t) const { return dim == 0 ? t : t.narrow(dim, first, count); }
  /// A fresh leaf.
  Tensor leaf() const { return whole.defined() ? cut(whole.detach()).requires_grad_() : Tensor(); }
  /// The leaf with the tangent that `whole` has, if it has one.
  Tensor with_tangent(const Tensor& leaf) const {
    if (!whole.defined() || !tangent_of(whole).defined()) return leaf;
    return at::_make_dual(leaf, cut(tangent_of(whole)), kLevel);
  }
};

bool counts_queries(const Tensor& t, int64_t dim, int64_t queries) {
  return t.dim() >= -dim && t.size(dim) == queries && queries > 1;
}

/// The sum of what the rows contribute to a result like `whole`, put together without writing into
/// anything: under vmap the parts may have a dimension that a tensor made here has not.
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

class Rows {
 public:
  Rows(const BackwardCallInputs& call, const Sizes& sizes, int64_t first, int64_t count)
      : call_(call), sizes_(sizes), first_(first), count_(count) {
    const CallOptions& o = call.options;
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
               by_query(o.bias, -2),
               by_query(o.alibi_slopes, 0),
               by_query(o.sinks, 0)};
    if (call.grad_lse.has_value()) inputs_[1] = {*call.grad_lse, -1, first, count};
    for (const Input& input : inputs_) {
      leaves_.push_back(input.leaf());
      values_.push_back(input.with_tangent(leaves_.back()));
    }
  }

  const Input& input(size_t i) const { return inputs_[i]; }

  /// The derivatives of sum_i <cotangents[i], gradient i> by the leaves.
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
    CallOptions o = call_.options;
    const auto replace = [&](std::optional<Tensor>& option, size_t leaf) {
      if (values_[leaf].defined()) option = values_[leaf];
    };
    replace(o.alibi_slopes, 6);
    replace(o.sinks, 7);
    o = options_of_rows(o, sizes_, call_.query, first_, count_);
    if (values_[5].defined()) {
      // Cut already, and aligned as `options_of_rows` leaves it.
      o.bias = missing_head_dimension(sizes_, values_[5].dim(), 4) == 1 ? values_[5].unsqueeze(1)
                                                                        : values_[5];
    }
    std::optional<Tensor> keep;
    const Tensor q = with_heads(values_[2]);
    if (o.dropout > 0) {
      keep = dropout_mask_from_seed(q.size(0), q.size(1), first_, count_, sizes_.keys.expect_int(),
                                    o.dropout, call_.seed.item<int64_t>());
    }
    const bool with_lse = values_[1].defined();
    const Definition result =
        define_attention(q, with_heads(values_[3]), with_heads(values_[4]), o, keep, with_lse);
    variable_list outputs = {result.out}, cotangents = {with_heads(values_[0])};
    if (with_lse && result.lse.requires_grad()) {  // of no keys it is a constant
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
  variable_list values_;  // the leaves, with tangents where there are some
};

/// 16-bit numbers would round each of the sums over rows.
BackwardCallInputs widened(const BackwardCallInputs& call) {
  return {flash::widened(call.grad_out),
          flash::widened(call.grad_lse),
          flash::widened(call.query),
          flash::widened(call.key),
          flash::widened(call.value),
          flash::widened(call.options),
          call.seed};
}

Tensor narrowed(const Tensor& t, const std::optional<Tensor>& like) {
  return t.defined() ? in_dtype(t, like->scalar_type()) : t;
}

std::array<std::optional<Tensor>, kTwiceDifferentiable> inputs_of(const BackwardCallInputs& call) {
  const CallOptions& o = call.options;
  return {call.grad_out, call.grad_lse, call.query,     call.key,
          call.value,    o.bias,        o.alibi_slopes, o.sinks};
}

}  // namespace

std::array<Tensor, kTwiceDifferentiable> second_gradients(
    const BackwardCallInputs& narrow, const std::array<Tensor, kDifferentiable>& narrow_cotangents,
    const std::array<bool, kTwiceDifferentiable>& wanted) {
  const BackwardCallInputs call = widened(narrow);
  std::array<Tensor, kDifferentiable> cotangents;
  std::transform(narrow_cotangents.begin(), narrow_cotangents.end(), cotangents.begin(),
                 [](const Tensor& t) { return t.defined() ? flash::widened(t) : t; });
  const Sizes sizes = check_attention(call.query, call.key, call.value, call.options);
  const int64_t queries = sizes.queries.expect_int();
  const int64_t step = rows_at_once(sizes.keys.expect_int());
  std::array<Sum, kTwiceDifferentiable> sums;
  for (int64_t first = 0; first < queries; first += step) {
    Rows rows(call, sizes, first, std::min(step, queries - first));
    const variable_list parts = rows.differentiate(cotangents, wanted);
    for (size_t i = 0; i < kTwiceDifferentiable; ++i) sums[i].add(rows.input(i), parts[i]);
  }
  const auto like = inputs_of(narrow);
  std::array<Tensor, kTwiceDifferentiable> result;
  for (size_t i = 0; i < result.size(); ++i) result[i] = narrowed(sums[i].result(), like[i]);
  return result;
}

std::array<Tensor, kDifferentiable> gradient_tangents(const BackwardCallInputs& narrow,
                                                      const Needed& needed) {
  const BackwardCallInputs call = widened(narrow);
  const Sizes sizes = check_attention(call.query, call.key, call.value, call.options);
  const int64_t queries = sizes.queries.expect_int();
  const int64_t step = rows_at_once(sizes.keys.expect_int());
  std::array<Sum, kDifferentiable> sums;
  for (int64_t first = 0; first < queries; first += step) {
    Rows rows(call, sizes, first, std::min(step, queries - first));
    const variable_list parts = rows.tangents(needed);
    for (size_t i = 0; i < kDifferentiable; ++i) sums[i].add(rows.input(2 + i), parts[i]);
  }
  const auto like = inputs_of(narrow);
  std::array<Tensor, kDifferentiable> result;
  for (size_t i = 0; i < result.size(); ++i) result[i] = narrowed(sums[i].result(), like[2 + i]);
  return result;
}

ForwardTangents forward_tangents(const Tensor& query, const Tensor& key, const Tensor& value,
                                 const CallOptions& options, const Tensor& seed) {
  const Sizes sizes = check_attention(query, key, value, options);
  const int64_t queries = sizes.queries.expect_int();
  const int64_t step = rows_at_once(sizes.keys.expect_int());
  const Tensor q = with_heads(query), k = with_heads(key), v = with_heads(value);
  variable_list outs, lses;
  for (int64_t first = 0; first < queries; first += step) {
    const int64_t count = std::min(step, queries - first);
    std::optional<Tensor> keep;
    if (options.dropout > 0) {
      keep = dropout_mask_from_seed(q.size(0), q.size(1), first, count, k.size(2), options.dropout,
                                    seed.item<int64_t>());
    }
    const Definition rows =
        define_attention(q.narrow(2, first, count), k, v,
                         options_of_rows(options, sizes, q, first, count), keep, /*with_lse=*/true);
    const auto tangent = [](const Tensor& t) {
      return tangent_of(t).defined() ? tangent_of(t) : at::zeros_like(t);
    };
    outs.push_back(tangent(rows.out));
    lses.push_back(tangent(rows.lse));
  }
  if (outs.empty()) {
    outs = {at::empty({q.size(0), q.size(1), 0, v.size(3)}, q.options())};
    lses = {at::empty({q.size(0), q.size(1), 0}, flash::widened(q).options())};
  }
  const auto joined = [&](const variable_list& parts) {
    const Tensor all = at::cat(parts, 2);
    return sizes.has_head_dimension ? all : all.squeeze(1);
  };
  return {joined(outs), joined(lses)};
}

}  // namespace flash
