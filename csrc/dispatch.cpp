// Compiled with baseline flags only, because it runs before the CPU's features are known.

#include "csrc/dispatch.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <string_view>

namespace flash {

#if defined(__x86_64__)
extern const KernelTable kAmxKernels;
extern const KernelTable kAvx512Bf16Kernels;
extern const KernelTable kAvx512Kernels;
extern const KernelTable kAvx2Kernels;
#elif defined(__aarch64__)
extern const KernelTable kNeonKernels;
#endif
#if defined(__x86_64__) || defined(__aarch64__)
extern const KernelTable kEmulatedAmxKernels;
#endif
extern const KernelTable kScalarKernels;

const std::vector<const KernelTable*>& all_kernels() {
  static const std::vector<const KernelTable*> tables = {
#if defined(__x86_64__)
    &kAmxKernels,
    &kAvx512Bf16Kernels,
    &kAvx512Kernels,
    &kAvx2Kernels,
#elif defined(__aarch64__)
    &kNeonKernels,
#endif
    &kScalarKernels,
#if defined(__x86_64__) || defined(__aarch64__)
    &kEmulatedAmxKernels,
#endif
  };
  return tables;
}

const KernelTable& scalar_kernels() { return kScalarKernels; }

namespace {

std::string known_names() {
  std::string names;
  for (const KernelTable* table : all_kernels()) {
    names += names.empty() ? "" : ", ";
    names += table->name;
    if (!table->supported()) names += " (not supported by this CPU)";
  }
  return names;
}

// torch's names for "the baseline of the architecture", which on aarch64 has NEON, "at most AVX2"
// and "at most AVX-512". Any other value sets no limit here.
bool allowed_by_aten(const KernelTable& table, std::string_view capability) {
  const std::string_view name = table.name;
  if (capability == "default") return name == "scalar" || name == "neon";
  if (capability == "avx2") return name == "scalar" || name == "neon" || name == "avx2";
  if (capability == "avx512") return name != "amx";
  return true;
}

}  // namespace

const KernelTable& choose_kernels(const char* flash_attention_isa,
                                  const char* aten_cpu_capability) {
  if (flash_attention_isa != nullptr && *flash_attention_isa != '\0') {
    for (const KernelTable* table : all_kernels()) {
      if (std::string_view(table->name) == flash_attention_isa && table->supported()) return *table;
    }
    throw std::invalid_argument("expected FLASH_ATTENTION_ISA to be one of " + known_names() +
                                ", got '" + flash_attention_isa +
                                "'; unset it to let the CPU decide");
  }
  const std::string_view capability = aten_cpu_capability == nullptr ? "" : aten_cpu_capability;
  for (const KernelTable* table : all_kernels()) {
    if (table->supported() && allowed_by_aten(*table, capability)) return *table;
  }
  return kScalarKernels;
}

namespace {

const std::string& asked_isa() {
  static const std::string isa = [] {
    const char* value = std::getenv("FLASH_ATTENTION_ISA");
    return std::string(value == nullptr ? "" : value);
  }();
  return isa;
}

std::atomic<const KernelTable*>& active() {
  static std::atomic<const KernelTable*> table =
      &choose_kernels(asked_isa().c_str(), std::getenv("ATEN_CPU_CAPABILITY"));
  return table;
}

}  // namespace

const KernelTable& active_kernels() { return *active().load(std::memory_order_acquire); }

bool kernels_are_asked_for() { return !asked_isa().empty(); }

const KernelTable& use_kernels(const char* name) {
  return *active().exchange(&choose_kernels(name, nullptr), std::memory_order_acq_rel);
}

}  // namespace flash
