#include "layers/patchtst/patch_forecast.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <c10/core/GradMode.h>
#include <flash_attention/matrix_product.h>

#include <algorithm>
#include <cmath>

#include "layers/patchtst/rev_in.h"

namespace flash::models {
namespace {

using at::Tensor;

/// Patches that go through the layers together, of one window or of several: as many as keep the
/// products at full speed, and their activations in the second-level cache.
constexpr int64_t kRows = 64;

/// The most patches of a window, whose scores take 256 KiB in float.
constexpr int64_t kMostPatches = 64;

template <class T>
const T* data(const Tensor& t) {
  return t.defined() ? t.const_data_ptr<T>() : nullptr;
}

/// Parts of one allocation, each at the beginning of a cache line.
template <class T>
class Workspace {
 public:
  /// Elements that a part takes.
  static int64_t rounded(int64_t elements) { return (elements + kLine - 1) / kLine * kLine; }

  Workspace(int64_t elements, const at::TensorOptions& options)
      : memory_(at::empty({elements}, options)), next_(memory_.template mutable_data_ptr<T>()) {}

  T* take(int64_t elements) {
    T* const part = next_;
    next_ += rounded(elements);
    return part;
  }

 private:
  static constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(T));
  Tensor memory_;
  T* next_;
};

struct Sizes {
  int64_t length, patches, patch, stride, hidden, heads, width, inner, outputs;

  Sizes(const PatchNetwork& n, int64_t length_)
      : length(length_),
        patches(n.position.size(0)),
        patch(n.embedding.weight.size(1)),
        stride(n.stride),
        hidden(n.embedding.weight.size(0)),
        heads(n.heads),
        width(n.layers.empty() ? 0 : n.layers[0].merge.weight.size(1)),
        inner(n.layers.empty() ? 0 : n.layers[0].inner.weight.size(0)),
        outputs(n.head.weight.size(0)) {}

  int64_t padded() const { return length + stride; }
  int64_t windows_at_once() const { return std::max<int64_t>(1, kRows / patches); }
};

/// The layers of one network on memory of the calling thread.
template <class T>
class Encoder {
 public:
  Encoder(const PatchNetwork& network, const Sizes& sizes, const at::TensorOptions& options)
      : n_(network), s_(sizes), memory_(elements(), options) {
    const int64_t rows = s_.windows_at_once() * s_.patches;
    padded_ = memory_.take(s_.padded());
    x_ = memory_.take(rows * s_.hidden);
    branch_ = memory_.take(rows * s_.hidden);
    wide_ = memory_.take(rows * widest());
    merged_ = memory_.take(rows * s_.width);
    norms_ = memory_.take(norm_elements());
    scores_ = memory_.take(scores_size());
    scratch_ = memory_.take(kernels::lane_attention_scratch(attention()));
    for (size_t i = 0; i < n_.layers.size(); ++i) {
      write_norm(n_.layers[i].attention_norm, factor(i, 0));
      write_norm(n_.layers[i].feed_forward_norm, factor(i, 1));
    }
  }

  /// `count` windows -> features [count, hidden, patches] and statistics [count, 2].
  void forward(const T* windows, int64_t count, T* features, T* statistics) {
    const int64_t size = s_.patches * s_.hidden;
    for (int64_t i = 0; i < count; ++i) {
      embed(windows + i * s_.length, statistics + 2 * i, x_ + i * size);
    }
    for (size_t i = 0; i < n_.layers.size(); ++i) layer(i, count);
    for (int64_t i = 0; i < count; ++i) transpose(x_ + i * size, features + i * size);
  }

 private:
  int64_t widest() const { return std::max(3 * s_.width, s_.inner); }
  int64_t norm_elements() const { return 4 * static_cast<int64_t>(n_.layers.size()) * s_.hidden; }
  int64_t scores_of_window() const { return kernels::lane_attention_scores(attention()); }
  int64_t scores_size() const {
    return n_.adds_scores ? s_.windows_at_once() * scores_of_window() : 0;
  }
  int64_t elements() const {
    const int64_t rows = s_.windows_at_once() * s_.patches;
    int64_t sum = 0;
    for (const int64_t part :
         {s_.padded(), rows * s_.hidden, rows * s_.hidden, rows * widest(), rows * s_.width,
          norm_elements(), scores_size(), kernels::lane_attention_scratch(attention())}) {
      sum += Workspace<T>::rounded(part);
    }
    return sum;
  }

  // The factor of a norm [hidden], and its shift after it; `which` is 0 for attention.
  T* factor(size_t i, int64_t which) const {
    return norms_ + (2 * static_cast<int64_t>(i) + which) * 2 * s_.hidden;
  }

  void write_norm(const FixedBatchNorm& norm, T* to) const {
    const T *const weight = data<T>(norm.weight), *const bias = data<T>(norm.bias),
                   *const mean = data<T>(norm.mean), *const variance = data<T>(norm.variance);
    const T epsilon = static_cast<T>(norm.epsilon);
    for (int64_t c = 0; c < s_.hidden; ++c) {
      const T factor = weight[c] / std::sqrt(variance[c] + epsilon);
      to[c] = factor;
      to[s_.hidden + c] = bias[c] - mean[c] * factor;
    }
  }

  void linear(const T* x, int64_t x_row, const Tensor& weight, const T* bias, int64_t rows, T* out,
              int64_t out_row) const {
    kernels::linear_rows<T>({.x = x,
                             .x_row = x_row,
                             .weight = data<T>(weight),
                             .weight_row = weight.size(1),
                             .bias = bias,
                             .out = out,
                             .out_row = out_row,
                             .rows = rows,
                             .columns = weight.size(0),
                             .depth = weight.size(1)});
  }

  // The window, normalized, with its last value repeated; mean or last value, and the deviation.
  void normalize(const T* window, T* statistics) const {
    const int64_t length = s_.length;
    T shift = 0, deviation = 1;
    if (n_.normalizes) {
      double sum = 0, squares = 0;
      for (int64_t t = 0; t < length; ++t) sum += window[t];
      const double mean = sum / static_cast<double>(length);
      for (int64_t t = 0; t < length; ++t) squares += (window[t] - mean) * (window[t] - mean);
      const auto variance = static_cast<T>(squares / static_cast<double>(length));
      shift = n_.subtracts_last ? window[length - 1] : static_cast<T>(mean);
      deviation = std::sqrt(variance + static_cast<T>(RevINImpl::kEpsilon));
    }
    const T *const weight = data<T>(n_.affine_weight), *const bias = data<T>(n_.affine_bias);
    for (int64_t t = 0; t < length; ++t) {
      const T value = (window[t] - shift) / deviation;
      padded_[t] = weight == nullptr ? value : value * *weight + *bias;
    }
    std::fill(padded_ + length, padded_ + s_.padded(), padded_[length - 1]);
    statistics[0] = shift, statistics[1] = deviation;
  }

  // Patches overlap in the padded window, so they are its rows as they are.
  void embed(const T* window, T* statistics, T* out) const {
    normalize(window, statistics);
    linear(padded_, s_.stride, n_.embedding.weight, data<T>(n_.embedding.bias), s_.patches, out,
           s_.hidden);
    kernels::affine_sum<T>(out, data<T>(n_.position), nullptr, nullptr, s_.patches, s_.hidden, out);
  }

  void layer(size_t i, int64_t count) const {
    const PatchLayer& layer = n_.layers[i];
    const int64_t rows = count * s_.patches;
    const T *const first = factor(i, 0), *const second = factor(i, 1);
    if (n_.norm_first) add_and_normalize(nullptr, first, rows);
    attend(layer, i, count);
    linear(merged_, s_.width, layer.merge.weight, data<T>(layer.merge.bias), rows, branch_,
           s_.hidden);
    add_and_normalize(branch_, n_.norm_first ? second : first, rows);
    linear(x_, s_.hidden, layer.inner.weight, nullptr, rows, wide_, s_.inner);
    kernels::activate<T>(n_.activation, wide_, data<T>(layer.inner.bias), nullptr, /*period=*/1,
                         /*first=*/0, rows, s_.inner);
    linear(wide_, s_.inner, layer.outer.weight, data<T>(layer.outer.bias), rows, branch_,
           s_.hidden);
    add_and_normalize(branch_, n_.norm_first ? nullptr : second, rows);
  }

  // x = norm(x + branch)
  void add_and_normalize(const T* branch, const T* norm, int64_t rows) const {
    kernels::affine_sum<T>(x_, branch, norm, norm == nullptr ? nullptr : norm + s_.hidden, rows,
                           s_.hidden, x_);
  }

  // Of one window, from its rows of queries, keys and values.
  kernels::LaneAttention<T> attention() const {
    const int64_t width = s_.width, head = width / s_.heads, row = 3 * width;
    return {.query = nullptr,
            .key = nullptr,
            .value = nullptr,
            .query_problem = head,
            .key_problem = head,
            .value_problem = head,
            .out_problem = head,
            .query_row = row,
            .key_row = row,
            .value_row = row,
            .out_row = width,
            .problems = s_.heads,
            .queries = s_.patches,
            .keys = s_.patches,
            .head_dim = head,
            .value_dim = head,
            .scale = 1};
  }

  void attend(const PatchLayer& layer, size_t i, int64_t count) const {
    const int64_t rows = count * s_.patches, width = s_.width;
    for (int64_t part = 0; part < 3; ++part) {
      const LinearWeights& weights = layer.projections[static_cast<size_t>(part)];
      linear(x_, s_.hidden, weights.weight, data<T>(weights.bias), rows, wide_ + part * width,
             3 * width);
    }
    const double root = std::sqrt(static_cast<double>(width / s_.heads));
    kernels::LaneAttention<T> call = attention();
    call.scale = layer.scale.defined() ? *data<T>(layer.scale) : static_cast<T>(1.0 / root);
    for (int64_t w = 0; w < count; ++w) {
      call.query = wide_ + w * s_.patches * 3 * width;
      call.key = call.query + width;
      call.value = call.key + width;
      if (n_.adds_scores) {
        const int64_t size = scores_of_window();
        call.scores = scores_ + w * size;
        if (i == 0) std::fill(call.scores, call.scores + size, T(0));
      }
      kernels::lane_attention<T>(call, merged_ + w * s_.patches * width, scratch_);
    }
  }

  // [patches, hidden] -> [hidden, patches]
  void transpose(const T* from, T* to) const {
    for (int64_t c = 0; c < s_.hidden; ++c) {
      for (int64_t t = 0; t < s_.patches; ++t) to[c * s_.patches + t] = from[t * s_.hidden + c];
    }
  }

  const PatchNetwork& n_;
  const Sizes& s_;
  Workspace<T> memory_;
  T *padded_, *x_, *branch_, *wide_, *merged_, *norms_, *scores_, *scratch_;
};

/// Calls call(tensor) for each tensor of the network, defined or not.
template <class Call>
void for_tensors(const PatchNetwork& n, const Call& call) {
  const auto of_linear = [&](const LinearWeights& layer) {
    call(layer.weight);
    call(layer.bias);
  };
  const auto of_norm = [&](const FixedBatchNorm& norm) {
    for (const Tensor* t : {&norm.weight, &norm.bias, &norm.mean, &norm.variance}) call(*t);
  };
  of_linear(n.embedding);
  of_linear(n.head);
  for (const Tensor* t : {&n.position, &n.affine_weight, &n.affine_bias}) call(*t);
  for (const PatchLayer& layer : n.layers) {
    for (const LinearWeights& part : layer.projections) of_linear(part);
    for (const LinearWeights* part : {&layer.merge, &layer.inner, &layer.outer}) of_linear(*part);
    of_norm(layer.attention_norm);
    of_norm(layer.feed_forward_norm);
    call(layer.scale);
  }
}

/// Whether all sizes agree, which is not sure of tensors that a program has put in place of others.
bool has_sizes(const PatchNetwork& n, const Sizes& s) {
  const auto is_layer = [](const LinearWeights& layer, int64_t out, int64_t in) {
    return layer.weight.sizes() == at::IntArrayRef{out, in} &&
           (!layer.bias.defined() || layer.bias.sizes() == at::IntArrayRef{out});
  };
  const auto is_norm = [&](const FixedBatchNorm& norm) {
    const auto parts = {norm.weight, norm.bias, norm.mean, norm.variance};
    return std::all_of(parts.begin(), parts.end(), [&](const Tensor& t) {
      return t.defined() && t.sizes() == at::IntArrayRef{s.hidden};
    });
  };
  const auto is_scalar = [](const Tensor& t) { return !t.defined() || t.numel() == 1; };
  return s.heads > 0 && is_scalar(n.affine_weight) && is_scalar(n.affine_bias) &&
         s.width % s.heads == 0 && s.padded() >= s.patch &&
         s.patches == (s.padded() - s.patch) / s.stride + 1 &&
         n.position.sizes() == at::IntArrayRef{s.patches, s.hidden} &&
         is_layer(n.embedding, s.hidden, s.patch) &&
         is_layer(n.head, s.outputs, s.hidden * s.patches) &&
         std::all_of(n.layers.begin(), n.layers.end(), [&](const PatchLayer& layer) {
           return std::all_of(layer.projections.begin(), layer.projections.end(),
                              [&](const LinearWeights& part) {
                                return is_layer(part, s.width, s.hidden);
                              }) &&
                  is_layer(layer.merge, s.hidden, s.width) &&
                  is_layer(layer.inner, s.inner, s.hidden) && layer.inner.bias.defined() &&
                  is_layer(layer.outer, s.hidden, s.inner) && is_scalar(layer.scale) &&
                  is_norm(layer.attention_norm) && is_norm(layer.feed_forward_norm);
         });
}

/// outputs [B, n] on the scale of the windows, in place.
template <class T>
void denormalize(const PatchNetwork& n, const T* statistics, int64_t batch, int64_t outputs,
                 T* out) {
  const T *const weight = data<T>(n.affine_weight), *const bias = data<T>(n.affine_bias);
  for (int64_t b = 0; b < batch; ++b) {
    const T shift = statistics[2 * b], deviation = statistics[2 * b + 1];
    for (int64_t i = b * outputs; i < (b + 1) * outputs; ++i) {
      T value = out[i];
      if (weight != nullptr) {
        value =
            (value - *bias) / (*weight + static_cast<T>(RevINImpl::kEpsilon * RevINImpl::kEpsilon));
      }
      out[i] = value * deviation + shift;
    }
  }
}

}  // namespace

bool fits_forecast(const PatchNetwork& network, const Tensor& windows) {
  if (c10::GradMode::is_enabled() || !fits_kernels(windows) || !is_plain(windows) ||
      windows.numel() == 0 || network.position.dim() != 2 ||
      network.position.size(0) > kMostPatches || !kernels::have_vectors() ||
      matrix_product_uses_tiles(windows.scalar_type())) {
    return false;
  }
  bool fits = true;
  for_tensors(network, [&](const Tensor& t) {
    fits = fits && (!t.defined() || (t.is_cpu() && t.scalar_type() == windows.scalar_type() &&
                                     t.is_contiguous() && is_plain(t)));
  });
  return fits && windows.dim() == 2 && network.embedding.weight.dim() == 2 &&
         network.head.weight.dim() == 2 &&
         std::all_of(network.layers.begin(), network.layers.end(),
                     [](const PatchLayer& layer) {
                       return layer.merge.weight.dim() == 2 && layer.inner.weight.dim() == 2;
                     }) &&
         has_sizes(network, Sizes(network, windows.size(1)));
}

Tensor patch_forecast(const PatchNetwork& network, const Tensor& windows) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  const Sizes sizes(network, windows.size(1));
  const int64_t batch = windows.size(0), step = sizes.windows_at_once(),
                size = sizes.patches * sizes.hidden;
  const Tensor rows = windows.contiguous(), features = at::empty({batch, size}, windows.options()),
               statistics = at::empty({batch, 2}, windows.options());
  AT_DISPATCH_FLOATING_TYPES(windows.scalar_type(), "patch_forecast", [&] {
    at::parallel_for(0, (batch + step - 1) / step, 1, [&](int64_t begin, int64_t end) {
      const at::AutoDispatchBelowADInplaceOrView inner_guard;
      Encoder<scalar_t> encoder(network, sizes, rows.options());
      for (int64_t b = begin * step; b < std::min(end * step, batch); b += step) {
        encoder.forward(rows.const_data_ptr<scalar_t>() + b * sizes.length,
                        std::min(step, batch - b), features.mutable_data_ptr<scalar_t>() + b * size,
                        statistics.mutable_data_ptr<scalar_t>() + 2 * b);
      }
    });
  });
  const Tensor out = linear_of_rows(features, network.head.weight, network.head.bias);
  if (network.normalizes) {
    AT_DISPATCH_FLOATING_TYPES(windows.scalar_type(), "patch_forecast", [&] {
      denormalize(network, statistics.const_data_ptr<scalar_t>(), batch, sizes.outputs,
                  out.mutable_data_ptr<scalar_t>());
    });
  }
  return out;
}

}  // namespace flash::models
