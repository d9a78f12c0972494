#include "layers/decomposition/mode_mixing.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <flash_attention/layer_kernels.h>
#include <torch/torch.h>

#include <algorithm>
#include <vector>

#include "layers/common/row_blocks.h"
#include "layers/decomposition/copy_run.h"

namespace flash::models {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct MixingSizes {
  int64_t batch, modes, heads, in, out;
};

/// Modes per task. The modes of a weight are adjacent in memory, and this many fill a cache line.
constexpr int64_t kModesPerTask = 8;

/// Elements of a packed matrix with 2 `rows` rows of `stride` elements. An odd number of cache
/// lines, because packing writes to the same place of all matrices of a task: a power of two apart,
/// these places would share a set of the first-level cache.
constexpr int64_t matrix_size(int64_t rows, int64_t stride) { return (2 * rows * stride) | 16; }

// A complex product in real form: rows (real parts, imaginary parts) times a matrix [2 e, 2 o] with
// the blocks (r, i), (-i, r).

/// Packs the matrices of modes [first, first + count) of one head in real form: [2 e, 2 o], or
/// [2 o, 2 e] if `transposed`.
template <class T>
void pack(const MixingSizes& s, const T* weights, int64_t first, int64_t count, bool transposed,
          T* packed) {
  const int64_t rows = transposed ? s.out : s.in, columns = transposed ? s.in : s.out;
  const int64_t stride = padded_row(2 * columns), size = matrix_size(rows, stride);
  const T sign = transposed ? T(-1) : T(1);  // transposition swaps the off-diagonal blocks
  for (int64_t e = 0; e < s.in; ++e) {
    for (int64_t o = 0; o < s.out; ++o) {
      const T* const source = weights + 2 * ((e * s.out + o) * s.modes + first);
      T* upper = packed + (transposed ? o * stride + e : e * stride + o);
      for (int64_t m = 0; m < count; ++m, upper += size) {
        T* const lower = upper + rows * stride;
        const T r = source[2 * m], i = sign * source[2 * m + 1];
        upper[0] = r, upper[columns] = i;
        lower[0] = -i, lower[columns] = r;
      }
    }
  }
}

/// The adjoint of pack with transposed = false, for packed matrices whose rows are not padded.
template <class T>
void unpack(const MixingSizes& s, const T* packed, int64_t first, int64_t count, T* weights) {
  const int64_t stride = 2 * s.out, size = matrix_size(s.in, stride);
  for (int64_t e = 0; e < s.in; ++e) {
    for (int64_t o = 0; o < s.out; ++o) {
      T* const target = weights + 2 * ((e * s.out + o) * s.modes + first);
      const T* upper = packed + e * stride + o;
      for (int64_t m = 0; m < count; ++m, upper += size) {
        const T* const lower = upper + s.in * stride;
        target[2 * m] = upper[0] + lower[s.out];
        target[2 * m + 1] = upper[s.out] - lower[0];
      }
    }
  }
}

/// Copies runs of `width` elements of one mode and head between a spectrum and rows of real, then
/// imaginary parts.
template <class T>
struct Runs {
  const MixingSizes& s;
  int64_t width;

  int64_t at(int64_t b, int64_t part, int64_t mode, int64_t head) const {
    return (((2 * b + part) * s.modes + mode) * s.heads + head) * width;
  }
  void gather(const T* spectrum, int64_t mode, int64_t head, T* rows, int64_t stride) const {
    for (int64_t b = 0; b < s.batch; ++b) {
      copy_run(spectrum + at(b, 0, mode, head), width, rows + b * stride);
      copy_run(spectrum + at(b, 1, mode, head), width, rows + b * stride + width);
    }
  }
  void scatter(const T* rows, int64_t mode, int64_t head, T* spectrum) const {
    for (int64_t b = 0; b < s.batch; ++b) {
      copy_run(rows + 2 * b * width, width, spectrum + at(b, 0, mode, head));
      copy_run(rows + (2 * b + 1) * width, width, spectrum + at(b, 1, mode, head));
    }
  }
};

/// Calls call(head, first, count, scratch) for each task; a thread has `elements` of scratch
/// memory. All heads of a group of modes are consecutive, because a row of the spectrum holds the
/// runs of all heads, and its pages and neighbouring cache lines are at hand.
template <class T, class Call>
void for_tasks(const MixingSizes& s, int64_t elements, const Call& call) {
  const int64_t groups = (s.modes + kModesPerTask - 1) / kModesPerTask;
  at::parallel_for(0, s.heads * groups, 1, [&](int64_t begin, int64_t end) {
    std::vector<T> scratch(static_cast<size_t>(elements));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i / s.heads * kModesPerTask;
      call(i % s.heads, first, std::min(kModesPerTask, s.modes - first), scratch.data());
    }
  });
}

/// x times the weights -> [.., heads * out], or if `transposed` times their transposes
/// -> [.., heads * in].
template <class T>
void multiply(const MixingSizes& s, const T* x, const T* weights, bool transposed, T* result) {
  const int64_t from = transposed ? s.out : s.in, to = transposed ? s.in : s.out;
  const int64_t stride = padded_row(2 * to), matrix = matrix_size(from, stride);
  for_tasks<T>(s, kModesPerTask * matrix + 2 * s.batch * (from + to),
               [&](int64_t head, int64_t first, int64_t count, T* packed) {
                 T* const rows = packed + kModesPerTask * matrix;
                 T* const products = rows + 2 * s.batch * from;
                 pack(s, weights + 2 * head * s.in * s.out * s.modes, first, count, transposed,
                      packed);
                 for (int64_t m = 0; m < count; ++m) {
                   Runs<T>{s, from}.gather(x, first + m, head, rows, 2 * from);
                   kernels::block_product({s.batch, 2 * to, 2 * from},
                                          kernels::LeftFactor<T>{rows, 2 * from, 1},
                                          {packed + m * matrix, stride}, {products, 2 * to});
                   Runs<T>{s, to}.scatter(products, first + m, head, result);
                 }
               });
}

template <class T>
void weights_gradient(const MixingSizes& s, const T* x, const T* gradient, T* of_weights) {
  const int64_t stride = padded_row(2 * s.out), matrix = matrix_size(s.in, 2 * s.out);
  for_tasks<T>(s, kModesPerTask * matrix + s.batch * (2 * s.in + stride),
               [&](int64_t head, int64_t first, int64_t count, T* packed) {
                 T* const rows = packed + kModesPerTask * matrix;
                 T* const gradients = rows + 2 * s.batch * s.in;
                 for (int64_t m = 0; m < count; ++m) {
                   Runs<T>{s, s.in}.gather(x, first + m, head, rows, 2 * s.in);
                   Runs<T>{s, s.out}.gather(gradient, first + m, head, gradients, stride);
                   kernels::block_product({2 * s.in, 2 * s.out, s.batch},
                                          kernels::LeftFactor<T>{rows, 1, 2 * s.in},
                                          {gradients, stride}, {packed + m * matrix, 2 * s.out});
                 }
                 unpack(s, packed, first, count, of_weights + 2 * head * s.in * s.out * s.modes);
               });
}

class MixModes : public torch::autograd::Function<MixModes> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& spectrum,
                            const at::Tensor& weights) {
    const at::Tensor x = spectrum.contiguous();
    const at::Tensor w = at::view_as_real(weights.resolve_conj()).contiguous();
    context->save_for_backward({x, w});
    const MixingSizes s = sizes_of(x, w);
    at::Tensor out = at::empty({s.batch, 2, s.modes, s.heads * s.out}, x.options());
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "mix_modes", [&] {
      multiply(s, x.const_data_ptr<scalar_t>(), w.const_data_ptr<scalar_t>(), /*transposed=*/false,
               out.mutable_data_ptr<scalar_t>());
    });
    return out;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    refuse_second_derivative("mix_modes");
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &w = saved[1], g = gradients[0].contiguous();
    const MixingSizes s = sizes_of(x, w);
    variable_list result(2);
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "mix_modes_backward", [&] {
      const auto* const of_result = g.const_data_ptr<scalar_t>();
      if (context->needs_input_grad(0)) {
        result[0] = at::empty_like(x);
        multiply(s, of_result, w.const_data_ptr<scalar_t>(), /*transposed=*/true,
                 result[0].mutable_data_ptr<scalar_t>());
      }
      if (context->needs_input_grad(1)) {
        const at::Tensor of_weights = at::empty_like(w);
        weights_gradient(s, x.const_data_ptr<scalar_t>(), of_result,
                         of_weights.mutable_data_ptr<scalar_t>());
        result[1] = at::view_as_complex(of_weights);
      }
    });
    return result;
  }

 private:
  static MixingSizes sizes_of(const at::Tensor& x, const at::Tensor& weights) {
    return {x.size(0), x.size(2), weights.size(0), weights.size(1), weights.size(2)};
  }
};

}  // namespace

at::Tensor mix_modes(const at::Tensor& spectrum, const at::Tensor& weights) {
  return MixModes::apply(spectrum, weights);
}

}  // namespace flash::models
