#pragma once
// Processing the rows of matrices in blocks, on all threads.
//
// Threads share rows in whole pieces. What is summed over rows is summed piece by piece, or in the
// order of rows, so no result depends on the number of threads.

#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>

#include <algorithm>

namespace flash::models {

/// Rows per block and thread. At a width of 128 about 3 KB per row are touched between two matrix
/// products, so a few hundred rows fit the L2 cache. Products of that size run at full speed.
inline constexpr int64_t kRowsPerBlock = 256;

/// Rows of a piece. Its elements are a multiple of 64, as blocks of dropout must be.
inline constexpr int64_t kRowsPerPiece = 64;

constexpr int64_t number_of_pieces(int64_t rows) {
  return (rows + kRowsPerPiece - 1) / kRowsPerPiece;
}

/// The stride of a row of `columns` elements, rounded up to whole cache lines so that no vector of
/// a row straddles one.
constexpr int64_t padded_row(int64_t columns) { return (columns + 15) / 16 * 16; }

/// Rows first … first + count - 1 of a matrix, whose first row is a multiple of kRowsPerPiece.
struct RowBlock {
  int64_t first, count;
  int64_t scratch;  ///< the row of a `BlockMatrix` at which its scratch memory begins

  at::Tensor of(const at::Tensor& matrix) const { return matrix.narrow(0, first, count); }
};

/// Calls `call(block)` for each block, one after another; a block has rows for all threads.
template <class Call>
void for_blocks(int64_t rows, const Call& call) {
  const int64_t step = kRowsPerBlock * at::get_num_threads();
  for (int64_t first = 0; first < rows; first += step) {
    call(RowBlock{first, std::min(step, rows - first), /*scratch=*/0});
  }
}

/// Calls `call(part)` on all threads, for parts of a block. Below autograd.
template <class Call>
void for_parts(const RowBlock& block, const Call& call) {
  at::parallel_for(0, number_of_pieces(block.count), 1, [&](int64_t begin, int64_t end) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    const int64_t first = begin * kRowsPerPiece;
    const int64_t last = std::min(end * kRowsPerPiece, block.count);
    call(RowBlock{block.first + first, last - first, block.scratch + first});
  });
}

/// Calls `call(block)` for blocks of at most kRowsPerBlock rows, on all threads. Each thread takes
/// its blocks in turn, with scratch memory of its own, and waits for no other. Below autograd.
template <class Call>
void for_parallel_blocks(int64_t rows, const Call& call) {
  at::parallel_for(0, number_of_pieces(rows), 1, [&](int64_t begin, int64_t end) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    const int64_t scratch = at::get_thread_num() * kRowsPerBlock;
    const int64_t last = std::min(end * kRowsPerPiece, rows);
    for (int64_t first = begin * kRowsPerPiece; first < last; first += kRowsPerBlock) {
      call(RowBlock{first, std::min(kRowsPerBlock, last - first), scratch});
    }
  });
}

/// The transpose of a weight [.., out, in] as the right-hand side of the products of all blocks of
/// `rows` rows. A product copies a part of a transposed weight when it needs it; from the second
/// block on, a copy of all of it takes less time.
inline at::Tensor transposed(const at::Tensor& weight, int64_t rows) {
  const at::Tensor view = weight.transpose(-2, -1);
  return rows > kRowsPerBlock ? view.contiguous() : view;
}

/// The rows of scratch memory for the blocks of a matrix of `rows` rows.
inline int64_t scratch_rows(int64_t rows) {
  return rows <= kRowsPerPiece ? rows : kRowsPerBlock * at::get_num_threads();
}

/// A matrix that is written block by block: stored whole for a backward, or with the memory of one
/// block per thread that is reused.
class BlockMatrix {
 public:
  BlockMatrix(int64_t rows, int64_t width, const at::TensorOptions& options, bool keep)
      : keep_(keep), whole_(at::empty({keep ? rows : scratch_rows(rows), width}, options)) {}

  at::Tensor block(const RowBlock& block) const {
    return whole_.narrow(0, keep_ ? block.first : block.scratch, block.count);
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
