#pragma once
// The windows that a forecaster is trained and tested on.

#include <ATen/core/Tensor.h>
#include <flash_attention/models/windows_batch.h>

#include <memory>
#include <vector>

#include "data/time_split.h"

namespace flash::models {

/// All series, concatenated.
struct SeriesStore {
  /// values: one [1 + F + X, rows] per series, target first; stat [series, S].
  SeriesStore(const std::vector<at::Tensor>& values, at::Tensor stat, int64_t futr_exog);

  int64_t series() const { return static_cast<int64_t>(begins.size()); }

  at::Tensor values;            ///< float32 [1 + F + X, rows of all series]
  std::vector<int64_t> begins;  ///< first row of each series
  at::Tensor stat;              ///< float32 [series, S]
  int64_t futr_exog;            ///< F
};

struct WindowBatch {
  WindowsBatch inputs;
  at::Tensor future;  ///< [B, horizon, N]
  at::Tensor series;  ///< int64 [B, N]: indices of their series
};

/// All windows whose future lies in the given rows. Windows are copied only when a batch is taken,
/// so long inputs cost no memory. Consecutive indices are consecutive in time.
class WindowDataset {
 public:
  /// A window covers one series (N = 1) or, if `together`, all of them (N = their number), as
  /// iTransformer needs.
  struct Shape {
    int64_t input_size;
    int64_t horizon;
    bool together = false;
  };

  /// `future_rows` has one range per series. Past rows may lie before it unless `past_inside`.
  /// Throws c10::ValueError if `together` and the ranges differ.
  WindowDataset(std::shared_ptr<const SeriesStore> store, const std::vector<RowRange>& future_rows,
                bool past_inside, Shape shape);

  int64_t size() const { return positions_.size(0); }
  int64_t series() const { return store_->series(); }
  /// First future row of window `index` within its series.
  int64_t first_future_row(int64_t index) const;
  /// The series of window `index`; the first one if `together`.
  int64_t first_series(int64_t index) const;

  /// The windows at `indices`, int64 [B].
  WindowBatch batch(const at::Tensor& indices) const;

 private:
  std::shared_ptr<const SeriesStore> store_;
  Shape shape_;
  at::Tensor positions_;  // int64 [windows, N]: first row in the concatenated series
  at::Tensor series_;     // int64 [windows, N]
};

}  // namespace flash::models
