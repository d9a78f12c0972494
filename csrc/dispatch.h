#pragma once
// The kernel tables of this build, and the choice of one at run time.
//
// For code compiled with baseline flags only. An inline function of std::vector or std::string
// that is compiled with -mavx512f could be the copy that the linker keeps for the whole library,
// and would then crash on a CPU without AVX-512.

#include <vector>

#include "csrc/kernels.h"

namespace flash {

/// Marks the functions that libflash_kernels.so exports.
#define FLASH_KERNELS_API __attribute__((visibility("default")))

/// Every table compiled in, best first. The scalar table is always supported; what comes after it
/// is for tests and never chosen unless named.
FLASH_KERNELS_API const std::vector<const KernelTable*>& all_kernels();

/// The table that FLASH_ATTENTION_ISA names, or else the best one that the CPU supports and
/// ATEN_CPU_CAPABILITY allows. The environment is read once per process.
/// Throws std::invalid_argument if FLASH_ATTENTION_ISA is unknown or not supported by this CPU.
FLASH_KERNELS_API const KernelTable& active_kernels();

/// Whether FLASH_ATTENTION_ISA is set. Then the active table is what the user asked for, and what
/// only pays on some CPUs with it may be used.
FLASH_KERNELS_API bool kernels_are_asked_for();

/// Makes the named table the active one for all later calls, so that one process can test every
/// table. Returns the previously active table. Throws like `active_kernels`.
FLASH_KERNELS_API const KernelTable& use_kernels(const char* name);

/// The choice behind `active_kernels`, for tests. Takes the values of the two environment
/// variables, null if unset.
FLASH_KERNELS_API const KernelTable& choose_kernels(const char* flash_attention_isa,
                                                    const char* aten_cpu_capability);

/// The portable table, used by `use_simd = false`.
FLASH_KERNELS_API const KernelTable& scalar_kernels();

}  // namespace flash
