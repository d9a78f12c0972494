#pragma once
// The reference implementation of attention and its gradients, in long double, row by row.

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "csrc/philox.h"
#include "tests/csrc/problem.h"

namespace flash::testing {

enum class Directions { kForward, kBoth };

/// softmax(softcap(scale q k^T) - slope |distance| + bias) v over the attended keys and the sink,
/// and its gradients.
template <class T>
Answer reference(const Problem<T>& p, Directions directions = Directions::kBoth) {
  using Real = long double;
  constexpr Real kMinusInf = -std::numeric_limits<Real>::infinity();
  const Shape& s = p.shape;
  const int64_t rows = s.batch * s.heads * s.queries;
  const bool backward = directions == Directions::kBoth;
  Answer a;
  a.out.resize(p.grad_out.size());
  a.lse.resize(rows);
  a.dq.resize(p.q.size());
  a.dk.resize(p.k.size());
  a.dv.resize(p.v.size());
  a.dbias.resize(p.bias.size());
  a.dslopes.resize(p.slopes.empty() ? 0 : rows);
  a.dsinks.resize(p.sinks.empty() ? 0 : rows);
  const Real keep = dropout_keep_scale(p.options.dropout);
  std::vector<Real> weight(s.keys), grad(s.keys), kept(s.keys), cap_derivative(s.keys);
  std::vector<int64_t> attended;
  const Real cap = p.options.softcap;
  const int64_t left = p.options.left, right = p.options.causal ? 0 : p.options.right;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t bh = row / s.queries, i = row % s.queries;
    const int64_t b = bh / s.heads, h = bh % s.heads;
    const int64_t kh = b * s.key_heads + h / (s.heads / s.key_heads);
    const int64_t vh = b * s.value_heads + h / (s.heads / s.value_heads);
    const T* q = p.q.data() + row * s.head_dim;
    const T* go = p.grad_out.data() + row * s.value_dim;
    const int64_t position = p.position(row, i);
    attended.clear();
    for (int64_t j = 0; j < s.keys; ++j) {
      const bool in_window =
          (left < 0 || position - j <= left) && (right < 0 || j - position <= right);
      if (in_window && (p.mask.empty() || p.mask[p.bias_index(row, j)] != 0)) attended.push_back(j);
    }
    Real max = p.sinks.empty() ? kMinusInf : Real(p.sinks[h]), sum = 0;
    for (const int64_t j : attended) {
      Real dot = 0;
      for (int64_t d = 0; d < s.head_dim; ++d)
        dot += Real(q[d]) * p.k[(kh * s.keys + j) * s.head_dim + d];
      weight[j] = dot * Real(p.scale);
      cap_derivative[j] = 1;
      if (cap > 0) {
        const Real tangent = std::tanh(weight[j] / cap);
        weight[j] = cap * tangent;
        cap_derivative[j] = 1 - tangent * tangent;
      }
      if (!p.slopes.empty()) weight[j] -= p.slopes[bh] * Real(std::abs(position - j));
      if (!p.bias.empty()) weight[j] += p.bias[p.bias_index(row, j)];
      max = std::max(max, weight[j]);
    }
    const Real sink = p.sinks.empty() ? Real(0) : std::exp(p.sinks[h] - max);
    sum = sink;
    for (const int64_t j : attended) sum += weight[j] = std::exp(weight[j] - max);
    a.lse[row] = static_cast<double>(sum == 0 ? kMinusInf : max + std::log(sum));
    Real delta = p.grad_lse.empty() ? Real(0) : -Real(p.grad_lse[row]);
    for (const int64_t j : attended) {
      kept[j] = 1;
      if (p.options.dropout > 0) {
        uint32_t word[4][1];
        dropout_words<ScalarCounters, 1>(philox_key(kSeed), bh, i, j / 4, word);
        kept[j] = word[j % 4][0] >= dropout_threshold(p.options.dropout) ? keep : Real(0);
      }
      weight[j] /= sum;
      grad[j] = 0;
      for (int64_t d = 0; d < s.value_dim; ++d) {
        const int64_t at = (vh * s.keys + j) * s.value_dim + d;
        a.out[row * s.value_dim + d] += static_cast<double>(weight[j] * kept[j] * p.v[at]);
        if (!backward) continue;
        a.dv[at] += static_cast<double>(weight[j] * kept[j] * go[d]);
        grad[j] += Real(go[d]) * p.v[at] * kept[j];
      }
      delta += weight[j] * grad[j];
    }
    if (!backward) continue;
    if (!p.sinks.empty()) a.dsinks[row] = static_cast<double>(-sink / sum * delta);
    for (const int64_t j : attended) {
      Real ds = weight[j] * (grad[j] - delta);
      if (!p.bias.empty()) a.dbias[p.bias_index(row, j)] += static_cast<double>(ds);
      if (!p.slopes.empty())
        a.dslopes[row] -= static_cast<double>(ds * Real(std::abs(position - j)));
      ds *= cap_derivative[j] * Real(p.scale);
      for (int64_t d = 0; d < s.head_dim; ++d) {
        const int64_t at = (kh * s.keys + j) * s.head_dim + d;
        a.dq[row * s.head_dim + d] += static_cast<double>(ds * p.k[at]);
        a.dk[at] += static_cast<double>(ds * q[d]);
      }
    }
  }
  return a;
}

}  // namespace flash::testing
