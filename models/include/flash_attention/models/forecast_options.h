#pragma once
// The options that all six models have.

#include <flash_attention/models/model_config.h>

#include <cstdint>

namespace flash::models {

/// Base of TFTOptions, InformerOptions, ... (`Derived`), so that calls can be chained:
///
///     TFTOptions(/*h=*/24, /*input_size=*/96).use_flash_attention(true).hidden_size(64)
template <class Derived>
class ForecastOptions {
 public:
  ForecastOptions(int64_t h, int64_t input_size) : h_(h), input_size_(input_size) {}

  /// Steps to forecast.
  Derived& h(int64_t value) { return set(h_, value); }
  int64_t h() const { return h_; }
  int64_t& h() { return h_; }

  /// Past steps that the model sees.
  Derived& input_size(int64_t value) { return set(input_size_, value); }
  int64_t input_size() const { return input_size_; }
  int64_t& input_size() { return input_size_; }

  /// Outputs per forecast step (and series), as many as the loss needs. Default: 1.
  Derived& outputsize_multiplier(int64_t value) { return set(outputsize_multiplier_, value); }
  int64_t outputsize_multiplier() const { return outputsize_multiplier_; }
  int64_t& outputsize_multiplier() { return outputsize_multiplier_; }

  /// See ModelConfig. Default: false.
  Derived& use_flash_attention(bool value) { return set(config_.use_flash_attention, value); }
  bool use_flash_attention() const { return config_.use_flash_attention; }
  bool& use_flash_attention() { return config_.use_flash_attention; }

  /// See ModelConfig. Default: 64.
  Derived& flash_block_size(int64_t value) { return set(config_.flash_block_size, value); }
  int64_t flash_block_size() const { return config_.flash_block_size; }
  int64_t& flash_block_size() { return config_.flash_block_size; }

  /// See ModelConfig. Default: false.
  Derived& gradient_checkpointing(bool value) { return set(config_.gradient_checkpointing, value); }
  bool gradient_checkpointing() const { return config_.gradient_checkpointing; }
  bool& gradient_checkpointing() { return config_.gradient_checkpointing; }

  /// The three options above as one.
  Derived& config(const ModelConfig& value) { return set(config_, value); }
  const ModelConfig& config() const { return config_; }

 private:
  template <class T>
  Derived& set(T& option, const T& value) {
    option = value;
    return static_cast<Derived&>(*this);
  }

  int64_t h_, input_size_;
  int64_t outputsize_multiplier_ = 1;
  ModelConfig config_;
};

}  // namespace flash::models
