#pragma once
// Processing the rows of matrices in blocks.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>

#include <algorithm>

namespace flash::models {

/// Rows per block and thread. At a width of 128 about 3 KB per row are touched between two matrix
/// products, so a few hundred rows fit the L2 cache. Products of that size run at full speed.
inline constexpr int64_t kRowsPerBlock = 256;

/// The stride of a row of `columns` elements, rounded up to whole cache lines so that no vector of
/// a row straddles one.
constexpr int64_t padded_row(int64_t columns) { return (columns + 15) / 16 * 16; }

/// Calls `call(first, rows)` for each block.
template <class Call>
void for_blocks(int64_t rows, const Call& call) {
  const int64_t step = kRowsPerBlock * at::get_num_threads();
  for (int64_t first = 0; first < rows; first += step) call(first, std::min(step, rows - first));
}

/// A matrix that is written block by block: stored whole for a backward, or with the memory of one
/// block that is reused.
class BlockMatrix {
 public:
  BlockMatrix(int64_t rows, int64_t width, const at::TensorOptions& options, bool keep)
      : keep_(keep),
        whole_(
            at::empty({keep ? rows : std::min(rows, kRowsPerBlock * at::get_num_threads()), width},
                      options)) {}

  at::Tensor block(int64_t first, int64_t rows) const {
    return whole_.narrow(0, keep_ ? first : 0, rows);
  }
  /// The matrix; undefined if it was not kept.
  at::Tensor kept() const { return keep_ ? whole_ : at::Tensor(); }

 private:
  bool keep_;
  at::Tensor whole_;
};

inline void refuse_second_derivative(const char* function) {
  TORCH_CHECK_NOT_IMPLEMENTED(!c10::GradMode::is_enabled(), function,
                              ": no second derivative; call backward without create_graph");
}

}  // namespace flash::models
