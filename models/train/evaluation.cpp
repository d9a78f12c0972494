#include "train/evaluation.h"

#include <torch/torch.h>

#include <cerrno>
#include <cstring>
#include <fstream>

namespace flash::models {
namespace {

constexpr int64_t kBatch = 256;

torch::Tensor predict(PatchTST& model, const WindowBatch& batch) {
  return model->forward(batch.past).squeeze(2);
}

/// Sums of absolute and squared errors, per column.
struct ErrorSums {
  explicit ErrorSums(int64_t columns)
      : absolute(torch::zeros({columns}, torch::kDouble)), squared(absolute.clone()) {}

  void add(const torch::Tensor& forecast, const torch::Tensor& truth, const torch::Tensor& column) {
    const torch::Tensor error = forecast.to(torch::kDouble) - truth.to(torch::kDouble);
    absolute.index_add_(0, column, error.abs().sum(1));
    squared.index_add_(0, column, error.square().sum(1));
  }

  Errors mean(int64_t numbers) const {
    const auto count = static_cast<double>(numbers);
    return {absolute.sum().item<double>() / count, squared.sum().item<double>() / count};
  }

  torch::Tensor absolute, squared;
};

std::string quoted(const std::string& field) {
  if (field.find_first_of(",\"\n") == std::string::npos) return field;
  std::string text = "\"";
  for (const char c : field) text += c == '"' ? std::string("\"\"") : std::string(1, c);
  return text + "\"";
}

}  // namespace

at::Tensor naive_forecast(const at::Tensor& past, int64_t horizon) {
  return past.squeeze(2).slice(1, -1).expand({-1, horizon});
}

at::Tensor seasonal_naive_forecast(const at::Tensor& past, int64_t horizon, int64_t season) {
  TORCH_CHECK_VALUE(season >= 1 && season <= past.size(1),
                    "expected a season between 1 and the input size ", past.size(1), ", got ",
                    season);
  const at::Tensor step = torch::arange(horizon).remainder(season);
  return past.squeeze(2).slice(1, past.size(1) - season).index_select(1, step);
}

double mean_absolute_error(PatchTST& model, const WindowDataset& windows) {
  torch::NoGradGuard no_grad;
  model->eval();
  double sum = 0.0;
  for (const torch::Tensor& indices : torch::arange(windows.size()).split(kBatch)) {
    const WindowBatch batch = windows.batch(indices);
    sum += torch::l1_loss(predict(model, batch), batch.future).item<double>() *
           static_cast<double>(indices.size(0));
  }
  return sum / static_cast<double>(windows.size());
}

Evaluation evaluate(PatchTST& model, const WindowDataset& windows, const CsvTable& table,
                    const Scaler& scaler, int64_t season) {
  torch::NoGradGuard no_grad;
  model->eval();
  const int64_t columns = windows.columns();
  const int64_t horizon = model->options.h();
  ErrorSums of_model(columns), of_naive(columns), of_seasonal(columns);
  for (const torch::Tensor& indices : torch::arange(windows.size()).split(kBatch)) {
    const WindowBatch batch = windows.batch(indices);
    const torch::Tensor column = indices.remainder(columns);
    of_model.add(predict(model, batch), batch.future, column);
    of_naive.add(naive_forecast(batch.past, horizon), batch.future, column);
    of_seasonal.add(seasonal_naive_forecast(batch.past, horizon, season), batch.future, column);
  }
  const int64_t numbers = windows.size() * horizon;
  Evaluation evaluation{.windows = windows.size(),
                        .model = of_model.mean(numbers),
                        .naive = of_naive.mean(numbers),
                        .seasonal_naive = of_seasonal.mean(numbers),
                        .columns = {}};
  const torch::Tensor unit =
      scaler.deviation * static_cast<double>(columns) / static_cast<double>(numbers);
  for (int64_t i = 0; i < columns; ++i) {
    const auto in_units = [&](const ErrorSums& sums) {
      return (sums.absolute[i] * unit[i]).item<double>();
    };
    evaluation.columns.push_back({table.columns[static_cast<size_t>(i)], in_units(of_model),
                                  in_units(of_naive), in_units(of_seasonal)});
  }
  return evaluation;
}

void write_forecast_csv(const std::string& path, PatchTST& model, const WindowDataset& windows,
                        const CsvTable& table, const Scaler& scaler, int64_t season) {
  torch::NoGradGuard no_grad;
  model->eval();
  std::ofstream stream(path);
  stream << "column,time,truth,forecast,naive,seasonal_naive\n";
  const int64_t columns = windows.columns();
  const int64_t horizon = model->options.h();
  for (int64_t column = 0; column < columns; ++column) {
    const torch::Tensor indices = torch::arange(column, windows.size(), columns * horizon);
    const WindowBatch batch = windows.batch(indices);
    const torch::Tensor scaled =
        torch::stack({batch.future, predict(model, batch), naive_forecast(batch.past, horizon),
                      seasonal_naive_forecast(batch.past, horizon, season)});
    const torch::Tensor values =
        scaled.to(torch::kDouble) * scaler.deviation[column] + scaler.mean[column];
    const auto value = values.accessor<double, 3>();
    for (int64_t w = 0; w < indices.size(0); ++w) {
      const int64_t row = windows.first_future_row(indices[w].item<int64_t>());
      for (int64_t step = 0; step < horizon; ++step) {
        stream << quoted(table.columns[static_cast<size_t>(column)]) << ','
               << quoted(table.labels[static_cast<size_t>(row + step)]);
        for (int64_t kind = 0; kind < 4; ++kind) stream << ',' << value[kind][w][step];
        stream << '\n';
      }
    }
  }
  stream.close();
  TORCH_CHECK_VALUE(stream, path, ": cannot be written: ", std::strerror(errno));
}

}  // namespace flash::models
