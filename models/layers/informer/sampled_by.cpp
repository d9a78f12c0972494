#include "layers/informer/sampled_by.h"

#include <utility>

namespace flash::models {
namespace {

thread_local std::optional<at::Generator> generator_of_samples;

}  // namespace

SampledBy::SampledBy(at::Generator generator)
    : before_(std::exchange(generator_of_samples, std::move(generator))) {}

SampledBy::~SampledBy() { generator_of_samples = std::move(before_); }

const std::optional<at::Generator>& sampling_generator() { return generator_of_samples; }

}  // namespace flash::models
