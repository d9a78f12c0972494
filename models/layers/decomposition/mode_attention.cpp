#include "layers/decomposition/mode_attention.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <flash_attention/layer_kernels.h>
#include <torch/torch.h>

#include <vector>

#include "layers/common/row_blocks.h"
#include "layers/decomposition/copy_run.h"

namespace flash::models {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct AttentionSizes {
  int64_t batch, heads, queries, keys, width;

  int64_t complex() const { return 2 * width; }  ///< a row of real, then imaginary parts
  int64_t row() const { return padded_row(complex()); }
  int64_t scores() const { return queries * keys; }
};

/// One head's modes of a spectrum [B, 2, n, heads * e]: runs of e elements.
template <class T>
struct HeadModes {
  T* data;
  int64_t modes, step;  ///< from one mode to the next

  HeadModes(const AttentionSizes& s, T* spectrum, int64_t modes_, int64_t unit)
      : data(spectrum + unit / s.heads * 2 * modes_ * s.heads * s.width + unit % s.heads * s.width),
        modes(modes_),
        step(s.heads * s.width) {}
  T* real(int64_t mode) const { return data + mode * step; }
  T* imaginary(int64_t mode) const { return data + (modes + mode) * step; }
};

/// A thread's scratch memory. Each query is stored as two rows, (r, -i) and (i, r): their products
/// with the rows (r, i) of keys are the real and the imaginary parts of the complex products.
template <class T>
struct Scratch {
  std::vector<T> memory;
  T *keys, *keys_transposed, *queries, *products, *scores, *of_keys;

  explicit Scratch(const AttentionSizes& s)
      : memory(static_cast<size_t>(2 * s.keys * s.row() + s.complex() * padded_row(s.keys) +
                                   4 * s.queries * s.row() + 2 * s.scores())),
        keys(memory.data()),
        keys_transposed(keys + s.keys * s.row()),
        queries(keys_transposed + s.complex() * padded_row(s.keys)),
        products(queries + 2 * s.queries * s.row()),
        scores(products + 2 * s.queries * s.row()),
        of_keys(scores + 2 * s.scores()) {}

  void load_keys(const AttentionSizes& s, const HeadModes<const T>& from) {
    for (int64_t y = 0; y < s.keys; ++y) {
      T* const row = keys + y * s.row();
      copy_run(from.real(y), s.width, row);
      copy_run(from.imaginary(y), s.width, row + s.width);
      for (int64_t c = 0; c < s.complex(); ++c)
        keys_transposed[c * padded_row(s.keys) + y] = row[c];
    }
  }
  void store_keys(const AttentionSizes& s, const HeadModes<T>& to) {
    for (int64_t y = 0; y < s.keys; ++y) {
      const T* const row = of_keys + y * s.row();
      copy_run(row, s.width, to.real(y));
      copy_run(row + s.width, s.width, to.imaginary(y));
    }
  }
  /// (r, -sign i) and (i, sign r).
  void load_doubled(const AttentionSizes& s, const HeadModes<const T>& from, T sign, T* rows) {
    for (int64_t x = 0; x < s.queries; ++x) {
      const T *const r = from.real(x), *const i = from.imaginary(x);
      T* const upper = rows + x * s.row();
      T* const lower = rows + (s.queries + x) * s.row();
      for (int64_t c = 0; c < s.width; ++c) {
        upper[c] = r[c], upper[s.width + c] = -sign * i[c];
        lower[c] = i[c], lower[s.width + c] = sign * r[c];
      }
    }
  }
  /// The adjoint.
  void store_doubled(const AttentionSizes& s, const T* rows, T sign, const HeadModes<T>& to) {
    for (int64_t x = 0; x < s.queries; ++x) {
      const T* const upper = rows + x * s.row();
      const T* const lower = rows + (s.queries + x) * s.row();
      T *const r = to.real(x), *const i = to.imaginary(x);
      for (int64_t c = 0; c < s.width; ++c) {
        r[c] = upper[c] + sign * lower[s.width + c];
        i[c] = lower[c] - sign * upper[s.width + c];
      }
    }
  }
};

/// Calls call(unit, scratch) for each batch and head.
template <class T, class Call>
void for_units(const AttentionSizes& s, const Call& call) {
  at::parallel_for(0, s.batch * s.heads, 1, [&](int64_t begin, int64_t end) {
    Scratch<T> scratch(s);
    for (int64_t unit = begin; unit < end; ++unit) call(unit, scratch);
  });
}

/// Writes weights [B, heads, 2, n, m], real and imaginary parts, for the backward.
template <class T>
void attend(const AttentionSizes& s, const T* query, const T* key, T* weights, T* result) {
  for_units<T>(s, [&](int64_t unit, Scratch<T>& own) {
    T* const of_unit = weights + unit * 2 * s.scores();
    own.load_keys(s, {s, key, s.keys, unit});
    own.load_doubled(s, {s, query, s.queries, unit}, T(1), own.queries);
    kernels::block_product({2 * s.queries, s.keys, s.complex()},
                           kernels::LeftFactor<T>{own.queries, s.row(), 1},
                           {own.keys_transposed, padded_row(s.keys)}, {of_unit, s.keys});
    kernels::complex_tanh(of_unit, of_unit, s.scores());
    // Real and imaginary weights with real and imaginary keys.
    kernels::block_product({2 * s.queries, s.complex(), s.keys},
                           kernels::LeftFactor<T>{of_unit, s.keys, 1}, {own.keys, s.row()},
                           {own.products, s.row()});
    own.store_doubled(s, own.products, T(-1), {s, result, s.queries, unit});
  });
}

template <class T>
struct ModeGradients {
  const T* of_result;
  T *of_query, *of_key;
};

template <class T>
void attend_backward(const AttentionSizes& s, const T* query, const T* key, const T* weights,
                     const ModeGradients<T>& gradients) {
  for_units<T>(s, [&](int64_t unit, Scratch<T>& own) {
    const T* const of_unit = weights + unit * 2 * s.scores();
    own.load_keys(s, {s, key, s.keys, unit});
    own.load_doubled(s, {s, query, s.queries, unit}, T(1), own.queries);
    own.load_doubled(s, {s, gradients.of_result, s.queries, unit}, T(-1), own.products);
    kernels::block_product({2 * s.queries, s.keys, s.complex()},
                           kernels::LeftFactor<T>{own.products, s.row(), 1},
                           {own.keys_transposed, padded_row(s.keys)}, {own.scores, s.keys});
    kernels::complex_tanh_backward(of_unit, own.scores, own.scores, s.scores());

    kernels::block_product({s.keys, s.complex(), 2 * s.queries},
                           kernels::LeftFactor<T>{of_unit, 1, s.keys}, {own.products, s.row()},
                           {own.of_keys, s.row()});
    kernels::block_product({s.keys, s.complex(), 2 * s.queries, /*accumulate=*/true},
                           kernels::LeftFactor<T>{own.scores, 1, s.keys}, {own.queries, s.row()},
                           {own.of_keys, s.row()});
    own.store_keys(s, {s, gradients.of_key, s.keys, unit});
    kernels::block_product({2 * s.queries, s.complex(), s.keys},
                           kernels::LeftFactor<T>{own.scores, s.keys, 1}, {own.keys, s.row()},
                           {own.products, s.row()});
    own.store_doubled(s, own.products, T(1), {s, gradients.of_query, s.queries, unit});
  });
}

class AttendModes : public torch::autograd::Function<AttendModes> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& query,
                            const at::Tensor& key, int64_t heads) {
    const at::Tensor q = query.contiguous(), k = key.contiguous();
    const AttentionSizes s = {q.size(0), heads, q.size(2), k.size(2), q.size(3) / heads};
    at::Tensor weights = at::empty({s.batch, heads, 2, s.queries, s.keys}, q.options());
    at::Tensor result = at::empty_like(q);
    AT_DISPATCH_FLOATING_TYPES(q.scalar_type(), "attend_modes", [&] {
      attend(s, q.const_data_ptr<scalar_t>(), k.const_data_ptr<scalar_t>(),
             weights.mutable_data_ptr<scalar_t>(), result.mutable_data_ptr<scalar_t>());
    });
    context->save_for_backward({q, k, weights});
    return result;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    refuse_second_derivative("attend_modes");
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &q = saved[0], &k = saved[1], &weights = saved[2];
    const at::Tensor g = gradients[0].contiguous();
    const int64_t heads = weights.size(1);
    const AttentionSizes s = {q.size(0), heads, q.size(2), k.size(2), q.size(3) / heads};
    const at::Tensor of_query = at::empty_like(q), of_key = at::empty_like(k);
    AT_DISPATCH_FLOATING_TYPES(q.scalar_type(), "attend_modes_backward", [&] {
      attend_backward<scalar_t>(
          s, q.const_data_ptr<scalar_t>(), k.const_data_ptr<scalar_t>(),
          weights.const_data_ptr<scalar_t>(),
          {g.const_data_ptr<scalar_t>(), of_query.mutable_data_ptr<scalar_t>(),
           of_key.mutable_data_ptr<scalar_t>()});
    });
    return {of_query, of_key, at::Tensor()};
  }
};

}  // namespace

at::Tensor attend_modes(const at::Tensor& query, const at::Tensor& key, int64_t heads) {
  return AttendModes::apply(query, key, heads);
}

}  // namespace flash::models
