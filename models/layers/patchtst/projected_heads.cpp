#include "layers/patchtst/projected_heads.h"

#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/torch.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <optional>
#include <tuple>

#include "layers/common/linear_blocks.h"
#include "layers/common/row_blocks.h"

namespace flash::models {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// Sizes of the packed matrix [B, T, parts, H, d], before it is split into heads.
struct PackedSizes {
  int64_t batch, time, parts, heads, width;

  int64_t rows() const { return batch * time; }
  int64_t columns() const { return parts * heads * width; }
  /// The columns, or along another dimension the rows, that belong to one part.
  Tensor part_of(const Tensor& all, int64_t dimension, int64_t part) const {
    return all.narrow(dimension, part * heads * width, heads * width);
  }

  Tensor empty_heads(int64_t columns_per_head, const Tensor& like) const {
    return at::empty({batch, heads, time, columns_per_head}, like.options());
  }
  /// [B, H, T, columns of before + d], which starts with `before`; the rest is uninitialised. In
  /// the memory of `before` if that is large enough, otherwise in new memory for `layers` layers.
  Tensor appended(const std::optional<Tensor>& before, int64_t layers, const Tensor& like) const {
    if (!before.has_value()) return empty_heads(layers * width, like).narrow(3, 0, width);
    const int64_t old = before->size(3);
    if (before->stride(2) >= old + width) {
      return before->as_strided({batch, heads, time, old + width}, before->strides());
    }
    const Tensor out = empty_heads(old + width, like);
    out.narrow(3, 0, old).copy_(*before);
    return out;
  }
  /// Batch elements per block and thread.
  int64_t per_thread() const {
    return std::clamp<int64_t>(kRowsPerBlock / std::max<int64_t>(1, time), 1,
                               std::max<int64_t>(1, batch));
  }
  /// Rows of a block of one thread.
  int64_t rows_per_thread() const { return std::max<int64_t>(1, per_thread() * time); }
  /// The packed matrix of as many batch elements as all threads take at a time.
  Tensor memory(const Tensor& like) const {
    return at::empty({per_thread() * at::get_num_threads() * time, columns()}, like.options());
  }
};

template <size_t kBytes>
struct Unit {
  std::byte bytes[kBytes];
};

/// Calls call.operator()<Unit>(units per head). Heads are short, so copying single elements or
/// using memcpy with a variable length takes several times as long.
template <class Call>
void with_unit(const Tensor& like, int64_t width, const Call& call) {
  const auto bytes = width * static_cast<int64_t>(like.element_size());
  if (bytes % 32 == 0) return call.template operator()<Unit<32>>(bytes / 32);
  call.template operator()<Unit<4>>(bytes / 4);
}

/// A few batch elements as rows of the packed matrix.
class HeadBlock {
 public:
  /// Batch elements first … first + count - 1, from element `slot` of the memory on.
  HeadBlock(const PackedSizes& sizes, int64_t first, int64_t count, const Tensor& memory,
            int64_t slot)
      : sizes_(sizes),
        first_(first),
        count_(count),
        packed_(memory.narrow(0, slot * sizes.time, count * sizes.time)) {}

  int64_t count() const { return count_; }
  HeadBlock part(int64_t first, int64_t count) const {
    return {sizes_, first_ + first, count, packed_, first};
  }

  /// [block rows, parts H d]
  const Tensor& packed() const { return packed_; }
  /// The block's part of a matrix of all rows.
  Tensor of(const Tensor& rows) const {
    return rows.narrow(0, first_ * sizes_.time, count_ * sizes_.time);
  }

  /// Copies one part of the rows to the last columns of `heads` [B, H, T, ..].
  void split(int64_t part, const Tensor& heads) const {
    for_rows(part, heads, []<class U>(const U* packed, U* head, int64_t width) {
      for (int64_t i = 0; i < width; ++i) head[i] = packed[i];
    });
  }
  /// The reverse of split.
  void merge(int64_t part, const Tensor& heads) const {
    for_rows(part, heads, []<class U>(U* packed, const U* head, int64_t width) {
      for (int64_t i = 0; i < width; ++i) packed[i] = head[i];
    });
  }

 private:
  template <class Call>
  void for_rows(int64_t part, const Tensor& heads, const Call& call) const {
    with_unit(heads, sizes_.width, [&]<class U>(int64_t width) {
      const auto units = [&](int64_t columns) { return columns / sizes_.width * width; };
      const int64_t row = units(heads.stride(2)), last = units(heads.size(3)) - width;
      U* const packed = static_cast<U*>(packed_.data_ptr());
      U* const rows = static_cast<U*>(heads.data_ptr()) + last;
      at::parallel_for(0, count_ * sizes_.heads, 4, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t b = i / sizes_.heads, h = i % sizes_.heads;
          for (int64_t t = 0; t < sizes_.time; ++t) {
            const int64_t from = ((b * sizes_.time + t) * sizes_.parts + part) * sizes_.heads + h;
            const int64_t to = (first_ * sizes_.heads + i) * sizes_.time + t;
            call(packed + from * width, rows + to * row, width);
          }
        }
      });
    });
  }

  const PackedSizes& sizes_;
  int64_t first_, count_;
  Tensor packed_;
};

/// Calls call(block) for blocks of rows for all threads, one after another.
template <class Call>
void for_blocks_of(const PackedSizes& sizes, const Tensor& like, const Call& call) {
  const int64_t step = sizes.per_thread() * at::get_num_threads();
  const Tensor memory = sizes.memory(like);
  for (int64_t first = 0; first < sizes.batch; first += step) {
    call(HeadBlock(sizes, first, std::min(step, sizes.batch - first), memory, /*slot=*/0));
  }
}

/// Calls call(part) on all threads, for parts of a block. Below autograd.
template <class Call>
void for_parts_of(const HeadBlock& block, const Call& call) {
  at::parallel_for(0, block.count(), 1, [&](int64_t begin, int64_t end) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    call(block.part(begin, end - begin));
  });
}

/// Calls call(block) for blocks of the batch on all threads, each of which takes its own in turn.
/// Below autograd.
template <class Call>
void for_parallel_blocks_of(const PackedSizes& sizes, const Tensor& like, const Call& call) {
  const int64_t step = sizes.per_thread();
  const Tensor memory = sizes.memory(like);
  at::parallel_for(0, sizes.batch, 1, [&](int64_t begin, int64_t end) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    const int64_t slot = at::get_thread_num() * step;
    for (int64_t first = begin; first < end; first += step) {
      call(HeadBlock(sizes, first, std::min(step, end - first), memory, slot));
    }
  });
}

using Gradients = std::tuple<Tensor, Tensor, Tensor>;  // of x, weight and bias

/// The weights of queries, keys and values.
using PartWeights = std::array<Tensor, 3>;

class ProjectHeads : public torch::autograd::Function<ProjectHeads> {
 public:
  static variable_list forward(AutogradContext* context, const Tensor& x,
                               const Tensor& query_weight, const Tensor& query_bias,
                               const Tensor& key_weight, const Tensor& key_bias,
                               const Tensor& value_weight, const Tensor& value_bias,
                               const std::optional<Tensor>& queries,
                               const std::optional<Tensor>& keys, int64_t heads, int64_t layers) {
    // Below autograd, a view has a version counter of its own. A layer's saved tensors stay valid
    // when the next layer appends in the same memory, and autograd must not complain.
    const at::AutoDispatchBelowADInplaceOrView guard;
    const LinearWeights parts[] = {
        {query_weight, query_bias}, {key_weight, key_bias}, {value_weight, value_bias}};
    const PackedSizes sizes = sizes_of(x, query_weight, heads);
    const variable_list out = {sizes.appended(queries, layers, x), sizes.appended(keys, layers, x),
                               sizes.empty_heads(sizes.width, x)};
    const Tensor rows = x.flatten(0, 1);
    for_parallel_blocks_of(sizes, x, [&](const HeadBlock& block) {
      for (int64_t i = 0; i < 3; ++i) {
        linear_into(block.of(rows), parts[i], sizes.part_of(block.packed(), 1, i));
        block.split(i, out[i]);
      }
    });
    context->save_for_backward({x, query_weight, key_weight, value_weight});
    context->saved_data["heads"] = heads;
    context->saved_data["before"] = out[0].size(3) - sizes.width;
    return out;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const variable_list saved = context->get_saved_variables();
    const int64_t before = context->saved_data["before"].toInt();
    const PackedSizes sizes = sizes_of(saved[0], saved[1], context->saved_data["heads"].toInt());
    const auto history = [&](const Tensor& gradient) {
      return before > 0 ? gradient.narrow(3, 0, before) : Tensor();
    };
    const PartWeights weights = {saved[1], saved[2], saved[3]};
    const auto [of_x, of_weight, of_bias] = at::GradMode::is_enabled()
                                                ? recorded(sizes, saved[0], weights, gradients)
                                                : blocked(sizes, saved[0], weights, gradients);
    variable_list result = {of_x};
    for (int64_t i = 0; i < 3; ++i) {
      result.push_back(sizes.part_of(of_weight, 0, i));
      result.push_back(sizes.part_of(of_bias, 0, i));
    }
    result.insert(result.end(), {history(gradients[0]), history(gradients[1]), Tensor(), Tensor()});
    return result;
  }

 private:
  static PackedSizes sizes_of(const Tensor& x, const Tensor& weight, int64_t heads) {
    return {x.size(0), x.size(1), 3, heads, weight.size(0) / heads};
  }

  // The gradients of the three weights, and of their biases, one after the other.
  static Gradients blocked(const PackedSizes& sizes, const Tensor& x, const PartWeights& weights,
                           const variable_list& gradients) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    const Tensor of_heads[] = {gradients[0].contiguous(), gradients[1].contiguous(),
                               gradients[2].contiguous()};
    const Tensor of_x = at::empty_like(x), of_rows = of_x.flatten(0, 1), rows = x.flatten(0, 1);
    LinearGradients of_layers(sizes.columns(), x.size(2), x.options());
    for_blocks_of(sizes, x, [&](const HeadBlock& block) {
      for_parts_of(block, [&](const HeadBlock& part) {
        for (int64_t i = 0; i < 3; ++i) {
          part.merge(i, of_heads[i]);
          matrix_product(sizes.part_of(part.packed(), 1, i), weights[static_cast<size_t>(i)],
                         part.of(of_rows), i == 0 ? ProductResult::kReplace : ProductResult::kAdd);
        }
      });
      of_layers.add(block.packed(), block.of(rows), sizes.rows_per_thread());
    });
    return {of_x, of_layers.weight(), of_layers.bias()};
  }

  static Gradients recorded(const PackedSizes& sizes, const Tensor& x, const PartWeights& weights,
                            const variable_list& gradients) {
    variable_list parts;  // [B, T, H, d]
    for (const Tensor& gradient : gradients) {
      parts.push_back(gradient.slice(3, gradient.size(3) - sizes.width).transpose(1, 2));
    }
    const Tensor packed = at::stack(parts, 2).view({sizes.rows(), sizes.columns()});
    return {packed.mm(at::cat({weights[0], weights[1], weights[2]})).view_as(x),
            packed.t().mm(x.flatten(0, 1)), packed.sum(0)};
  }
};

class MergeHeads : public torch::autograd::Function<MergeHeads> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& weight,
                        const Tensor& bias) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    const PackedSizes sizes = sizes_of(x);
    const Tensor out = at::empty({sizes.batch, sizes.time, weight.size(0)}, x.options());
    const Tensor rows = out.flatten(0, 1);
    for_parallel_blocks_of(sizes, x, [&](const HeadBlock& block) {
      block.merge(0, x);
      linear_into(block.packed(), {weight, bias}, block.of(rows));
    });
    context->save_for_backward({x, weight, bias});
    return out;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const variable_list saved = context->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1];
    const PackedSizes sizes = sizes_of(x);
    const Tensor rows = gradients[0].flatten(0, 1).contiguous();
    const auto [of_x, of_weight, of_bias] = at::GradMode::is_enabled()
                                                ? recorded(sizes, x, weight, rows)
                                                : blocked(sizes, x, {weight, saved[2]}, rows);
    return {of_x, of_weight, of_bias};
  }

 private:
  static PackedSizes sizes_of(const Tensor& x) {
    return {x.size(0), x.size(2), 1, x.size(1), x.size(3)};
  }

  static Gradients blocked(const PackedSizes& sizes, const Tensor& x, const LinearWeights& layer,
                           const Tensor& gradient) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    const Tensor of_x = sizes.empty_heads(sizes.width, x);
    LinearGradients of_layer(layer);
    for_blocks_of(sizes, x, [&](const HeadBlock& block) {
      for_parts_of(block, [&](const HeadBlock& part) { part.merge(0, x); });
      of_layer.add(block.of(gradient), block.packed(), sizes.rows_per_thread());
      for_parts_of(block, [&](const HeadBlock& part) {
        matrix_product(part.of(gradient), layer.weight, part.packed());
        part.split(0, of_x);
      });
    });
    return {of_x, of_layer.weight(), of_layer.bias()};
  }

  static Gradients recorded(const PackedSizes& sizes, const Tensor& x, const Tensor& weight,
                            const Tensor& gradient) {
    const Tensor of_x = gradient.mm(weight)
                            .view({sizes.batch, sizes.time, sizes.heads, sizes.width})
                            .transpose(1, 2);
    const Tensor packed = x.transpose(1, 2).flatten(2).flatten(0, 1);
    return {of_x, gradient.t().mm(packed), gradient.sum(0)};
  }
};

std::optional<Tensor> if_any(const Tensor& t) {
  return t.defined() ? std::optional<Tensor>(t) : std::nullopt;
}

}  // namespace

Tensor project_heads(const Tensor& x, const std::array<LinearWeights, 3>& layers, int64_t heads,
                     ScoreHistory& history) {
  const auto& [query, key, value] = layers;
  if (fits_kernels(x)) {
    const variable_list result = ProjectHeads::apply(
        x.contiguous(), query.weight.contiguous(), query.bias, key.weight.contiguous(), key.bias,
        value.weight.contiguous(), value.bias, if_any(history.queries), if_any(history.keys), heads,
        history.layers);
    history.queries = result[0];
    history.keys = result[1];
    return result[2];
  }
  const auto parts = linear(x, at::cat({query.weight, key.weight, value.weight}),
                            at::cat({query.bias, key.bias, value.bias}))
                         .unflatten(-1, {3, heads, -1})
                         .permute({2, 0, 3, 1, 4})  // [3, B, H, T, d]
                         .unbind();
  const auto appended = [](const Tensor& before, const Tensor& part) {
    return before.defined() ? at::cat({before, part}, -1) : part;
  };
  history.queries = appended(history.queries, parts[0]);
  history.keys = appended(history.keys, parts[1]);
  return parts[2];
}

Tensor merge_heads(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  if (fits_kernels(x)) return MergeHeads::apply(x.contiguous(), weight.contiguous(), bias);
  return linear(x.transpose(1, 2).flatten(2), weight, bias);
}

}  // namespace flash::models
