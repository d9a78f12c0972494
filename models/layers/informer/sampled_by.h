#pragma once
// Whose random numbers select the keys on which ProbSparse attention measures its queries.

#include <ATen/core/Generator.h>
#include <flash_attention/export.h>

#include <optional>

namespace flash::models {

/// During its lifetime, forwards on this thread sample keys by a generator of their own instead of
/// torch's, which all threads share. The same seed gives the same keys by either.
class FLASH_API SampledBy {
 public:
  explicit SampledBy(at::Generator generator);
  ~SampledBy();
  SampledBy(const SampledBy&) = delete;
  SampledBy& operator=(const SampledBy&) = delete;

 private:
  std::optional<at::Generator> before_;
};

/// The generator of the innermost SampledBy of this thread; none stands for torch's.
const std::optional<at::Generator>& sampling_generator();

}  // namespace flash::models
