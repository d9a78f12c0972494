#include "ops/attention_part.h"

#include <c10/util/Exception.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <string>

#include "ops/attention_checks.h"
#include "ops/storage_checks.h"

namespace flash {

Part make_part(const at::Tensor& query, const at::Tensor& seed, at::IntArrayRef place,
               double dropout) {
  constexpr int64_t kLast = std::numeric_limits<int32_t>::max();
  const auto is_index = [](int64_t index) { return index >= 0 && index <= kLast; };
  TORCH_CHECK_VALUE(
      place.size() == 5 && std::all_of(place.begin(), place.end(), is_index),
      "flash::attention: expected place as (first batch element, first head, first query, first "
      "key, number of heads), each in [0, ",
      kLast, "], got ", place);
  const int64_t heads = query.dim() == 4 ? query.size(1) : 1;
  TORCH_CHECK_VALUE(place[1] <= place[4] - heads, "flash::attention: expected heads ", place[1],
                    " to ", place[1] + heads, " of query to be among the ", place[4],
                    " of the whole call");
  Part part = {0, Origin{place[0], place[1], place[2], place[3], place[4] - heads}};
  if (dropout > 0) {
    TORCH_CHECK_TYPE(seed.scalar_type() == at::kLong,
                     "flash::attention: expected seed of dtype int64, got ", seed.scalar_type());
    TORCH_CHECK_VALUE(seed.is_cpu() && seed.numel() == 1,
                      "flash::attention: expected seed as one element on the CPU, got shape ",
                      seed.sizes(), " on ", seed.device());
    check_storage({seed});
    part.seed = seed.item<int64_t>();
  }
  return part;
}

}  // namespace flash

TORCH_LIBRARY_FRAGMENT(flash, m) {
  using flash::SchemaDefaults;
  const std::string forward =
      "_forward_part(Tensor query, Tensor key, Tensor value, Tensor seed, int[5] place, "
      "bool whole_rows, *, " +
      flash::all_options_schema(SchemaDefaults::kWith) + ") -> (Tensor out, Tensor row_stats)";
  m.def(forward.c_str());
  const std::string backward =
      "_backward_part(Tensor grad_out, Tensor? grad_lse, Tensor query, Tensor key, Tensor value, "
      "Tensor out, Tensor row_stats, Tensor seed, int[5] place, " +
      flash::all_options_schema(SchemaDefaults::kWithout) +
      ", bool[6] needed) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)";
  m.def(backward.c_str());
}
