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

// A product of so many rows is efficient, and few of them are held at once.
constexpr int64_t kRowsAtOnce = 64;

/// A tensor that the result of some rows is a function of, and the rows of it that they read.
struct Input {
  Tensor whole;     // undefined if the call has none
  int64_t dim = 0;  // the dimension that counts queries; 0: every row of queries reads all of it
  int64_t first = 0, count = 0;

  Tensor cut(const Tensor& t) const { return dim == 0 ? t : t.narrow(dim, first, count); }
  /// A fresh leaf.
  Tensor leaf() const { return whole.defined() ? cut(whole.detach()).requires_grad_() : Tensor(); }
};

bool counts_queries(const Tensor& t, int64_t dim, int64_t queries) {
  return t.dim() >= -dim && t.size(dim) == queries && queries > 1;
}

void add(Tensor& sum, const Input& input, const Tensor& part) {
  if (!part.defined()) return;
  if (!sum.defined()) sum = at::zeros_like(input.whole, at::MemoryFormat::Contiguous);
  input.cut(sum).add_(part);
}

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
    for (Input& input : inputs_) {
      if (input.whole.defined())
        leaves_.push_back(input.leaf());
      else
        leaves_.emplace_back();
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
    const variable_list gradients = first_gradients(asked);
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

 private:
  variable_list first_gradients(const variable_list& by) {
    CallOptions o = call_.options;
    const auto replace = [&](std::optional<Tensor>& option, size_t leaf) {
      if (leaves_[leaf].defined()) option = leaves_[leaf];
    };
    replace(o.alibi_slopes, 6);
    replace(o.sinks, 7);
    o = options_of_rows(o, sizes_, call_.query, first_, count_);
    if (leaves_[5].defined()) {
      // Cut already, and aligned as `options_of_rows` leaves it.
      o.bias = missing_head_dimension(sizes_, leaves_[5].dim(), 4) == 1 ? leaves_[5].unsqueeze(1)
                                                                        : leaves_[5];
    }
    std::optional<Tensor> keep;
    const Tensor q = with_heads(leaves_[2]);
    if (o.dropout > 0) {
      keep = dropout_mask_from_seed(q.size(0), q.size(1), first_, count_, sizes_.keys.expect_int(),
                                    o.dropout, call_.seed);
    }
    const bool with_lse = leaves_[1].defined();
    const Definition result =
        define_attention(q, with_heads(leaves_[3]), with_heads(leaves_[4]), o, keep, with_lse);
    variable_list outputs = {result.out}, cotangents = {with_heads(leaves_[0])};
    if (with_lse) {
      outputs.push_back(result.lse);
      cotangents.push_back(sizes_.has_head_dimension ? leaves_[1] : leaves_[1].unsqueeze(1));
    }
    if (by.empty()) return {};
    return torch::autograd::grad(outputs, by, cotangents, /*retain_graph=*/true,
                                 /*create_graph=*/true, /*allow_unused=*/true);
  }

  const BackwardCallInputs& call_;
  const Sizes& sizes_;
  const int64_t first_, count_;
  std::array<Input, kTwiceDifferentiable> inputs_;
  variable_list leaves_;
};

}  // namespace

std::array<Tensor, kTwiceDifferentiable> second_gradients(
    const BackwardCallInputs& call, const std::array<Tensor, kDifferentiable>& cotangents,
    const std::array<bool, kTwiceDifferentiable>& wanted) {
  const Sizes sizes = check_attention(call.query, call.key, call.value, call.options);
  const int64_t queries = sizes.queries.expect_int();
  std::array<Tensor, kTwiceDifferentiable> sums;
  for (int64_t first = 0; first < queries; first += kRowsAtOnce) {
    Rows rows(call, sizes, first, std::min(kRowsAtOnce, queries - first));
    const variable_list parts = rows.differentiate(cotangents, wanted);
    for (size_t i = 0; i < kTwiceDifferentiable; ++i) add(sums[i], rows.input(i), parts[i]);
  }
  return sums;
}

}  // namespace flash
