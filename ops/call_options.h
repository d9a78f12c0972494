#pragma once
// The options of a call of the operator: the one list of them, in the order of its schemas, and the
// way from a function of CallOptions to one that the dispatcher calls with each option apart.

#include <ATen/core/Tensor.h>
#include <c10/util/OptionalArrayRef.h>
#include <flash_attention/ops.h>

#include <array>
#include <cstdint>
#include <optional>

namespace flash {

struct CallOptions {
  std::optional<at::Tensor> bias;
  bool causal = false;
  std::optional<at::Tensor> query_positions;
  Window window;
  std::optional<at::Tensor> alibi_slopes;
  double softcap = 0.0;
  std::optional<at::Tensor> sinks;
  std::optional<double> scale;
  double dropout = 0.0;
  int64_t block_size = 64;
  bool use_simd = true;
};

/// Those of `CallOptions`, as schemas spell them.
inline constexpr char kOptionsSchema[] =
    "Tensor? bias=None, bool causal=False, Tensor? query_positions=None, int[2]? window=None, "
    "Tensor? alibi_slopes=None, float softcap=0.0, Tensor? sinks=None, float? scale=None, "
    "float dropout=0.0, int block_size=64, bool use_simd=True";

CallOptions call_options(const AttentionOptions& options);

/// The options as the dispatcher passes them. Throws c10::ValueError unless a window is two
/// numbers.
CallOptions pack_options(const std::optional<at::Tensor>& bias, bool causal,
                         const std::optional<at::Tensor>& query_positions,
                         at::OptionalIntArrayRef window,
                         const std::optional<at::Tensor>& alibi_slopes, double softcap,
                         const std::optional<at::Tensor>& sinks, std::optional<double> scale,
                         double dropout, int64_t block_size, bool use_simd);

/// Calls f with the arguments of `pack_options`.
template <class F>
auto with_unpacked(const CallOptions& o, F&& f) {
  const std::array<int64_t, 2> window = {o.window.left, o.window.right};
  return f(o.bias, o.causal, o.query_positions, at::OptionalIntArrayRef(window), o.alibi_slopes,
           o.softcap, o.sinks, o.scale, o.dropout, o.block_size, o.use_simd);
}

template <class...>
struct Types {};

template <class... Options>
Types<Options...> arguments_of(CallOptions (*)(Options...));
using OptionTypes = decltype(arguments_of(&pack_options));

/// A function of `Before..., const CallOptions&, After...` with each option as an argument.
template <class Result, class Before, class Options, class After>
struct Unpacked;
template <class Result, class... Before, class... Options, class... After>
struct Unpacked<Result, Types<Before...>, Types<Options...>, Types<After...>> {
  using Signature = Result(Before..., Options..., After...);

  template <Result (*kFunction)(Before..., const CallOptions&, After...)>
  static Result call(Before... before, Options... options, After... after) {
    return kFunction(before..., pack_options(options...), after...);
  }
};

/// attention, attention_with_lse and _forward take query, key and value.
template <class Result>
using AttentionCall =
    Unpacked<Result, Types<const at::Tensor&, const at::Tensor&, const at::Tensor&>, OptionTypes,
             Types<>>;

}  // namespace flash
