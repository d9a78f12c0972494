#pragma once
// Shared by the tests of the operator's C++ interface.

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/torch.h>

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "message_of.h"
#include "tolerances.h"

namespace flash::tests {

struct Shape {
  int64_t batch = 2, heads = 4, queries = 19, keys = 33, head_dim = 8, value_dim = 12;
};

/// Standard normal query, key and value, the same in every test.
struct Inputs {
  at::Tensor query, key, value;

  explicit Inputs(at::ScalarType dtype = at::kDouble, const Shape& s = {}) {
    torch::manual_seed(17);
    query = at::randn({s.batch, s.heads, s.queries, s.head_dim}, dtype);
    key = at::randn({s.batch, s.heads, s.keys, s.head_dim}, dtype);
    value = at::randn({s.batch, s.heads, s.keys, s.value_dim}, dtype);
  }

  Inputs& requires_grad() {
    for (at::Tensor* t : {&query, &key, &value}) t->requires_grad_();
    return *this;
  }
};

inline double tolerance(at::ScalarType dtype) {
  return dtype == at::kDouble ? kOperatorFloat64 : kOperatorFloat32;
}

/// kTileRounding for bfloat16 where the active instruction set has matrix tiles, else 0.
inline double tile_rounding(at::ScalarType dtype) {
  const auto info = c10::Dispatcher::singleton()
                        .findSchemaOrThrow("flash::_build_info", "")
                        .typed<std::string()>()
                        .call();
  const std::string isa = nlohmann::json::parse(info)["active"];
  return dtype == at::kBFloat16 && (isa.starts_with("amx") || isa == "avx512-bf16") ? kTileRounding
                                                                                    : 0;
}

/// Largest absolute difference; NaN if either tensor has a NaN.
inline double largest_difference(const at::Tensor& a, const at::Tensor& b) {
  return (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
}

}  // namespace flash::tests
