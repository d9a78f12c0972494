#include "layers/patchtst/projected_heads.h"

#include <torch/torch.h>

#include <algorithm>
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
  /// Batch elements per block.
  int64_t step() const {
    const int64_t rows = kRowsPerBlock * at::get_num_threads();
    return std::clamp<int64_t>(rows / std::max<int64_t>(1, time), 1, std::max<int64_t>(1, batch));
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
  HeadBlock(const PackedSizes& sizes, int64_t first, const Tensor& memory)
      : sizes_(sizes),
        first_(first),
        count_(std::min(sizes.step(), sizes.batch - first)),
        packed_(memory.narrow(0, 0, count_ * sizes.time)) {}

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

template <class Call>
void for_blocks_of(const PackedSizes& sizes, const Tensor& like, const Call& call) {
  const int64_t step = sizes.step();
  const Tensor memory = at::empty({step * sizes.time, sizes.columns()}, like.options());
  for (int64_t first = 0; first < sizes.batch; first += step) call(HeadBlock(sizes, first, memory));
}

using Gradients = std::tuple<Tensor, Tensor, Tensor>;  // of x, weight and bias

class ProjectHeads : public torch::autograd::Function<ProjectHeads> {
 public:
  static variable_list forward(AutogradContext* context, const Tensor& x, const Tensor& weight,
                               const Tensor& bias, const std::optional<Tensor>& queries,
                               const std::optional<Tensor>& keys, int64_t heads, int64_t layers) {
    // Below autograd, a view has a version counter of its own. A layer's saved tensors stay valid
    // when the next layer appends in the same memory, and autograd must not complain.
    const at::AutoDispatchBelowADInplaceOrView guard;
    const PackedSizes sizes = sizes_of(x, weight, heads);
    const variable_list out = {sizes.appended(queries, layers, x), sizes.appended(keys, layers, x),
                               sizes.empty_heads(sizes.width, x)};
    const Tensor rows = x.flatten(0, 1);
    for_blocks_of(sizes, x, [&](const HeadBlock& block) {
      linear_into(block.of(rows), {weight, bias}, block.packed());
      for (int64_t part = 0; part < 3; ++part) block.split(part, out[part]);
    });
    context->save_for_backward({x, weight, bias});
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
    const auto [of_x, of_weight, of_bias] =
        at::GradMode::is_enabled() ? recorded(sizes, saved[0], saved[1], gradients)
                                   : blocked(sizes, saved[0], {saved[1], saved[2]}, gradients);
    return {of_x,     of_weight, of_bias, history(gradients[0]), history(gradients[1]),
            Tensor(), Tensor()};
  }

 private:
  static PackedSizes sizes_of(const Tensor& x, const Tensor& weight, int64_t heads) {
    return {x.size(0), x.size(1), 3, heads, weight.size(0) / (3 * heads)};
  }

  static Gradients blocked(const PackedSizes& sizes, const Tensor& x, const LinearWeights& layer,
                           const variable_list& gradients) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    const Tensor of_heads[] = {gradients[0].contiguous(), gradients[1].contiguous(),
                               gradients[2].contiguous()};
    const Tensor of_x = at::empty_like(x), of_rows = of_x.flatten(0, 1), rows = x.flatten(0, 1);
    LinearGradients of_layer(layer);
    for_blocks_of(sizes, x, [&](const HeadBlock& block) {
      for (int64_t part = 0; part < 3; ++part) block.merge(part, of_heads[part]);
      of_layer.add(block.packed(), block.of(rows));
      matrix_product(block.packed(), layer.weight, block.of(of_rows));
    });
    return {of_x, of_layer.weight, of_layer.bias};
  }

  static Gradients recorded(const PackedSizes& sizes, const Tensor& x, const Tensor& weight,
                            const variable_list& gradients) {
    variable_list parts;  // [B, T, H, d]
    for (const Tensor& gradient : gradients) {
      parts.push_back(gradient.slice(3, gradient.size(3) - sizes.width).transpose(1, 2));
    }
    const Tensor packed = at::stack(parts, 2).view({sizes.rows(), sizes.columns()});
    return {packed.mm(weight).view_as(x), packed.t().mm(x.flatten(0, 1)), packed.sum(0)};
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
    for_blocks_of(sizes, x, [&](const HeadBlock& block) {
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
      block.merge(0, x);
      of_layer.add(block.of(gradient), block.packed());
      matrix_product(block.of(gradient), layer.weight, block.packed());
      block.split(0, of_x);
    });
    return {of_x, of_layer.weight, of_layer.bias};
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

}  // namespace

Tensor project_heads(const Tensor& x, const Tensor& weight, const Tensor& bias, int64_t heads,
                     ScoreHistory& history) {
  if (fits_kernels(x)) {
    const auto if_any = [](const Tensor& t) {
      return t.defined() ? std::optional<Tensor>(t) : std::nullopt;
    };
    const variable_list result =
        ProjectHeads::apply(x.contiguous(), weight.contiguous(), bias, if_any(history.queries),
                            if_any(history.keys), heads, history.layers);
    history.queries = result[0];
    history.keys = result[1];
    return result[2];
  }
  const auto parts = linear(x, weight, bias)
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
