#include "data/window_dataset.h"

#include <ATen/ATen.h>
#include <ATen/TensorIndexing.h>

#include <algorithm>
#include <utility>

namespace flash::models {
namespace {

using at::indexing::Slice;

/// rows [C, R] -> slices [C, B, N, length] that start at `positions` [B, N].
at::Tensor slices(const at::Tensor& rows, const at::Tensor& positions, int64_t length) {
  return rows.unfold(1, length, 1).index({Slice(), positions});
}

}  // namespace

SeriesStore::SeriesStore(const std::vector<at::Tensor>& values_, at::Tensor stat_,
                         int64_t futr_exog_)
    : values(at::cat(values_, 1).to(at::kFloat)),
      stat(stat_.to(at::kFloat)),
      futr_exog(futr_exog_) {
  int64_t begin = 0;
  for (const at::Tensor& one : values_) {
    begins.push_back(begin);
    begin += one.size(1);
  }
}

WindowDataset::WindowDataset(std::shared_ptr<const SeriesStore> store,
                             const std::vector<RowRange>& future_rows, bool past_inside,
                             Shape shape)
    : store_(std::move(store)), shape_(shape) {
  const size_t series = future_rows.size();
  std::vector<int64_t> starts, counts;
  for (const RowRange& rows : future_rows) {
    starts.push_back(past_inside ? rows.begin : rows.begin - shape.input_size);
    counts.push_back(
        std::max<int64_t>(0, rows.end - starts.back() - shape.input_size - shape.horizon + 1));
    TORCH_CHECK_VALUE(!shape.together || (starts.back() == starts[0] && counts.back() == counts[0]),
                      "expected series with the same rows, because the model forecasts them "
                      "together, got one whose rows differ");
  }
  std::vector<int64_t> positions, owners;
  for (int64_t k = 0; k < *std::max_element(counts.begin(), counts.end()); ++k) {
    for (size_t s = 0; s < series; ++s) {
      if (k >= counts[s]) continue;
      positions.push_back(store_->begins[s] + starts[s] + k);
      owners.push_back(static_cast<int64_t>(s));
    }
  }
  const int64_t width = shape.together ? static_cast<int64_t>(series) : 1;
  positions_ = at::tensor(positions, at::kLong).view({-1, width});
  series_ = at::tensor(owners, at::kLong).view({-1, width});
}

int64_t WindowDataset::first_series(int64_t index) const {
  return series_[index][0].item<int64_t>();
}

int64_t WindowDataset::first_future_row(int64_t index) const {
  const auto begin = store_->begins[static_cast<size_t>(first_series(index))];
  return positions_[index][0].item<int64_t>() - begin + shape_.input_size;
}

WindowBatch WindowDataset::batch(const at::Tensor& indices) const {
  const int64_t length = shape_.input_size + shape_.horizon;
  const at::Tensor positions = positions_.index_select(0, indices);
  const at::Tensor& rows = store_->values;
  const at::Tensor y = slices(rows.slice(0, 0, 1), positions, length)[0].transpose(1, 2);
  WindowBatch batch{.inputs = {.insample_y = y.slice(1, 0, shape_.input_size).contiguous()},
                    .future = y.slice(1, shape_.input_size).contiguous(),
                    .series = series_.index_select(0, indices)};
  const int64_t hist_begin = 1 + store_->futr_exog;
  if (store_->futr_exog > 0) {
    const at::Tensor futr = slices(rows.slice(0, 1, hist_begin), positions, length);
    batch.inputs.futr_exog = (shape_.together ? futr.permute({1, 0, 3, 2})  // [B, F, L + h, N]
                                              : futr.select(2, 0).permute({1, 2, 0}))
                                 .contiguous();
  }
  if (rows.size(0) > hist_begin) {  // multivariate models have none
    batch.inputs.hist_exog = slices(rows.slice(0, hist_begin), positions, shape_.input_size)
                                 .select(2, 0)
                                 .permute({1, 2, 0})
                                 .contiguous();
  }
  if (store_->stat.size(1) > 0) {
    batch.inputs.stat_exog = store_->stat.index_select(0, batch.series.select(1, 0));
  }
  return batch;
}

}  // namespace flash::models
