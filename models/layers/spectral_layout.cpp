#include "layers/spectral_layout.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/torch.h>

#include "layers/function_clones.h"
#include "layers/row_blocks.h"

namespace flash::models {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct SpectrumSizes {
  int64_t batch, modes, heads, width;
};

/// Where the runs of a layout are: the distance from one to the next in each direction.
struct RunStrides {
  int64_t batch, mode, head, part;
  int64_t copy;  ///< of kDoubled, from its first to its second rows
};

SpectrumSizes sizes_of(const at::Tensor& t, SpectralLayout layout) {
  switch (layout) {
    case SpectralLayout::kTransform:
      return {t.size(0), t.size(2), t.size(3), t.size(4)};
    case SpectralLayout::kModes:
      return {t.size(2), t.size(0), t.size(1), t.size(4)};
    case SpectralLayout::kHeads:
      return {t.size(0), t.size(2), t.size(1), t.size(4)};
    default:
      return {t.size(0), t.size(3), t.size(1), t.size(5)};
  }
}

std::vector<int64_t> shape_of(const SpectrumSizes& s, SpectralLayout layout) {
  switch (layout) {
    case SpectralLayout::kTransform:
      return {s.batch, 2, s.modes, s.heads, s.width};
    case SpectralLayout::kModes:
      return {s.modes, s.heads, s.batch, 2, s.width};
    case SpectralLayout::kHeads:
      return {s.batch, s.heads, s.modes, 2, s.width};
    default:
      return {s.batch, s.heads, 2, s.modes, 2, s.width};
  }
}

RunStrides strides_of(const SpectrumSizes& s, SpectralLayout layout) {
  const int64_t e = s.width;
  switch (layout) {
    case SpectralLayout::kTransform:
      return {.batch = 2 * s.modes * s.heads * e,
              .mode = s.heads * e,
              .head = e,
              .part = s.modes * s.heads * e,
              .copy = 0};
    case SpectralLayout::kModes:
      return {.batch = 2 * e,
              .mode = s.heads * s.batch * 2 * e,
              .head = s.batch * 2 * e,
              .part = e,
              .copy = 0};
    case SpectralLayout::kHeads:
      return {.batch = s.heads * s.modes * 2 * e,
              .mode = 2 * e,
              .head = s.modes * 2 * e,
              .part = e,
              .copy = 0};
    default:
      return {.batch = s.heads * s.modes * 4 * e,
              .mode = 2 * e,
              .head = s.modes * 4 * e,
              .part = e,
              .copy = s.modes * 2 * e};
  }
}

/// `sign` is 1 for DoubledForm::kFactor, -1 for kProduct: the form r, -sign i, i, sign r, and as
/// its adjoint (which for kProduct is its reading) r = first + sign last, i = third - sign second.
template <class T>
inline __attribute__((always_inline)) void move_runs(const SpectrumSizes& s, const T* in,
                                                     const RunStrides& from, T* out,
                                                     const RunStrides& to, T sign) {
  for (int64_t b = 0; b < s.batch; ++b) {
    for (int64_t m = 0; m < s.modes; ++m) {
      for (int64_t h = 0; h < s.heads; ++h) {
        const T* const r = in + b * from.batch + m * from.mode + h * from.head;
        const T* const i = r + from.part;
        T* const real = out + b * to.batch + m * to.mode + h * to.head;
        T* const imaginary = real + to.part;
        if (from.copy != 0) {
          const T *const below = r + from.copy, *const last = i + from.copy;
#pragma omp simd
          for (int64_t c = 0; c < s.width; ++c) {
            real[c] = r[c] + sign * last[c];
            imaginary[c] = below[c] - sign * i[c];
          }
        } else if (to.copy != 0) {
          T *const below = real + to.copy, *const last = imaginary + to.copy;
#pragma omp simd
          for (int64_t c = 0; c < s.width; ++c) {
            real[c] = r[c];
            imaginary[c] = -sign * i[c];
            below[c] = i[c];
            last[c] = sign * r[c];
          }
        } else {
#pragma omp simd
          for (int64_t c = 0; c < s.width; ++c) {
            real[c] = r[c];
            imaginary[c] = i[c];
          }
        }
      }
    }
  }
}

#define FLASH_MOVE_LOOP(T)                                                            \
  FLASH_FUNCTION_CLONES                                                               \
  void move_loop(const SpectrumSizes& s, const T* in, const RunStrides& from, T* out, \
                 const RunStrides& to, T sign) {                                      \
    move_runs(s, in, from, out, to, sign);                                            \
  }
FLASH_MOVE_LOOP(float)
FLASH_MOVE_LOOP(double)

at::Tensor moved(const at::Tensor& spectrum, SpectralLayout from, SpectralLayout to,
                 DoubledForm form) {
  const at::Tensor in = spectrum.contiguous();
  const SpectrumSizes sizes = sizes_of(in, from);
  at::Tensor out = at::empty(shape_of(sizes, to), in.options());
  AT_DISPATCH_FLOATING_TYPES(in.scalar_type(), "rearrange_spectrum", [&] {
    const auto* const source = in.const_data_ptr<scalar_t>();
    auto* const target = out.mutable_data_ptr<scalar_t>();
    const RunStrides in_strides = strides_of(sizes, from), out_strides = strides_of(sizes, to);
    at::parallel_for(0, sizes.batch, 4, [&](int64_t begin, int64_t end) {
      const SpectrumSizes part = {end - begin, sizes.modes, sizes.heads, sizes.width};
      move_loop(part, source + begin * in_strides.batch, in_strides,
                target + begin * out_strides.batch, out_strides,
                scalar_t(form == DoubledForm::kFactor ? 1 : -1));
    });
  });
  return out;
}

/// The real parts of one mode of a contiguous spectrum, [B, heads, e], a view; or what is `offset`
/// further on.
at::Tensor real_parts(const at::Tensor& spectrum, SpectralLayout layout, int64_t mode,
                      int64_t offset = 0) {
  const SpectrumSizes sizes = sizes_of(spectrum, layout);
  const RunStrides strides = strides_of(sizes, layout);
  return spectrum.as_strided({sizes.batch, sizes.heads, sizes.width},
                             {strides.batch, strides.head, 1},
                             spectrum.storage_offset() + mode * strides.mode + offset);
}

class Rearranged : public torch::autograd::Function<Rearranged> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& spectrum,
                            const std::optional<at::Tensor>& shift, int64_t mode, double factor,
                            int64_t from, int64_t to, int64_t form) {
    context->saved_data["from"] = from;
    context->saved_data["to"] = to;
    context->saved_data["form"] = form;
    context->saved_data["mode"] = shift ? mode : -1;
    context->saved_data["factor"] = factor;
    context->saved_data["has_shift"] = shift.has_value();
    const auto layout = static_cast<SpectralLayout>(to);
    at::Tensor out =
        moved(spectrum, static_cast<SpectralLayout>(from), layout, static_cast<DoubledForm>(form));
    if (shift && mode >= 0) {
      const SpectrumSizes sizes = sizes_of(out, layout);
      const at::Tensor moved_by = shift->view({1, sizes.heads, sizes.width});
      real_parts(out, layout, mode).add_(moved_by, factor);
      if (layout == SpectralLayout::kDoubled) {  // which holds them twice
        const RunStrides strides = strides_of(sizes, layout);
        real_parts(out, layout, mode, strides.copy + strides.part).add_(moved_by, factor);
      }
    }
    return out;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    refuse_second_derivative("rearrange_spectrum");
    const auto from = static_cast<SpectralLayout>(context->saved_data["from"].toInt());
    const auto to = static_cast<SpectralLayout>(context->saved_data["to"].toInt());
    const auto form = static_cast<DoubledForm>(context->saved_data["form"].toInt());
    variable_list result(7);
    result[0] = moved(gradients[0], to, from, form);
    if (context->saved_data["has_shift"].toBool()) {
      const int64_t mode = context->saved_data["mode"].toInt();
      const SpectrumSizes sizes = sizes_of(result[0], from);
      result[1] = mode < 0 ? at::zeros({sizes.heads * sizes.width}, result[0].options())
                           : real_parts(result[0], from, mode)
                                 .sum(0)
                                 .flatten()
                                 .mul_(context->saved_data["factor"].toDouble());
    }
    return result;
  }
};

// From complex [heads, e, o, n], as pairs, to [n, heads, 2 e, 2 o] with blocks (r, i), (-i, r), and
// its adjoint.

struct WeightSizes {
  int64_t heads, in, out, modes;
};

template <class T>
void pack(const WeightSizes& s, const T* weights, T* packed) {
  for (int64_t row = 0; row < s.heads * s.in; ++row) {
    const int64_t h = row / s.in, e = row % s.in;
    const T* const source = weights + 2 * row * s.out * s.modes;
    for (int64_t m = 0; m < s.modes; ++m) {
      T* const upper = packed + ((m * s.heads + h) * 2 * s.in + e) * 2 * s.out;
      T* const lower = upper + s.in * 2 * s.out;
      for (int64_t o = 0; o < s.out; ++o) {
        const T r = source[2 * (o * s.modes + m)], i = source[2 * (o * s.modes + m) + 1];
        upper[o] = r, upper[s.out + o] = i;
        lower[o] = -i, lower[s.out + o] = r;
      }
    }
  }
}

template <class T>
void unpack(const WeightSizes& s, const T* packed, T* weights) {
  for (int64_t row = 0; row < s.heads * s.in; ++row) {
    const int64_t h = row / s.in, e = row % s.in;
    T* const target = weights + 2 * row * s.out * s.modes;
    for (int64_t m = 0; m < s.modes; ++m) {
      const T* const upper = packed + ((m * s.heads + h) * 2 * s.in + e) * 2 * s.out;
      const T* const lower = upper + s.in * 2 * s.out;
      for (int64_t o = 0; o < s.out; ++o) {
        target[2 * (o * s.modes + m)] = upper[o] + lower[s.out + o];
        target[2 * (o * s.modes + m) + 1] = upper[s.out + o] - lower[o];
      }
    }
  }
}

class RealForm : public torch::autograd::Function<RealForm> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& weights) {
    context->saved_data["sizes"] = weights.sizes().vec();
    const at::Tensor in = at::view_as_real(weights.resolve_conj()).contiguous();
    const WeightSizes s = {in.size(0), in.size(1), in.size(2), in.size(3)};
    at::Tensor packed = at::empty({s.modes, s.heads, 2 * s.in, 2 * s.out}, in.options());
    AT_DISPATCH_FLOATING_TYPES(in.scalar_type(), "real_form", [&] {
      pack(s, in.const_data_ptr<scalar_t>(), packed.mutable_data_ptr<scalar_t>());
    });
    return packed;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    refuse_second_derivative("real_form");
    const std::vector<int64_t> sizes = context->saved_data["sizes"].toIntVector();
    const WeightSizes s = {sizes[0], sizes[1], sizes[2], sizes[3]};
    const at::Tensor gradient = gradients[0].contiguous();
    at::Tensor weights = at::empty({s.heads, s.in, s.out, s.modes, 2}, gradient.options());
    AT_DISPATCH_FLOATING_TYPES(gradient.scalar_type(), "real_form", [&] {
      unpack(s, gradient.const_data_ptr<scalar_t>(), weights.mutable_data_ptr<scalar_t>());
    });
    return {at::view_as_complex(weights)};
  }
};

}  // namespace

at::Tensor rearrange_spectrum(const at::Tensor& spectrum, SpectralLayout from, SpectralLayout to,
                              DoubledForm form, const ConstantShift& shift) {
  const auto value = shift.value.defined() ? std::optional<at::Tensor>(shift.value) : std::nullopt;
  return Rearranged::apply(spectrum, value, shift.mode, shift.factor, static_cast<int64_t>(from),
                           static_cast<int64_t>(to), static_cast<int64_t>(form));
}

at::Tensor real_form(const at::Tensor& weights) { return RealForm::apply(weights); }

}  // namespace flash::models
