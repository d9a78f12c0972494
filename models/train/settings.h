#pragma once
// What the user of flash_train asked for.

#include <cstdint>
#include <string>
#include <vector>

namespace flash::models {

/// Which rows are for what, and what to compare with: stored with a model, as its test error
/// depends on it.
struct DataSettings {
  std::vector<std::string> columns;
  double train_fraction = 0.7;
  double validation_fraction = 0.1;
  int64_t season = 7;  ///< rows per season of the seasonal-naive forecast
};

/// The defaults suit daily tables of a few years: a year of history, and a small model with much
/// dropout, since such tables hold little to learn from.
struct Settings {
  std::string csv;
  DataSettings data;
  bool season_given = false;

  int64_t input_size = 365;
  int64_t horizon = 14;
  int64_t patch_len = 16;
  int64_t stride = 3;
  int64_t hidden_size = 16;
  int64_t n_heads = 4;
  int64_t encoder_layers = 2;
  int64_t linear_hidden_size = 32;
  double dropout = 0.5;

  int64_t epochs = 8;
  int64_t batch_size = 64;
  double learning_rate = 5e-4;
  uint64_t seed = 1;
  std::string attention = "flash";  ///< or "standard"
  int64_t block_size = 64;
  int threads = 0;  ///< 0: torch's default

  std::string evaluate;  ///< a model to apply instead of training one
  std::string output;
  std::string forecast_csv;
  std::string report;
};

}  // namespace flash::models
