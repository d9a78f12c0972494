// Compiled with -mavx2 -mfma -mf16c. No code of this file may run before dispatch.cpp has checked
// the CPU, so the table is a constant, and `supported` uses a compiler built-in that needs no AVX.

#include <cpuid.h>

#include "csrc/avx2/vec.h"
#include "csrc/generic/tile_table.h"

namespace flash {

namespace {

// Clang 14 does not know "f16c" in __builtin_cpu_supports.
bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}

bool supports_avx2() {
  return __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0 && has_f16c();
}

}  // namespace

extern const KernelTable kAvx2Kernels;
constinit const KernelTable kAvx2Kernels = {"avx2",
                                            "x86-64 AVX2, FMA and F16C",
                                            supports_avx2,
                                            typed_kernels<Vec<float>>(),
                                            typed_kernels<Vec<double>>(),
                                            &kLayerKernels<Vec<float>>,
                                            &kLayerKernels<Vec<double>>};

extern const KernelTable kEmulatedAmxKernels;
constinit const KernelTable kEmulatedAmxKernels = {
    "amx-emulated",
    "for tests: amx with its tiles emulated, AVX2 otherwise",
    supports_avx2,
    typed_kernels_with_tiles<Vec<float>, kEmulatedTileKernels>(),
    typed_kernels<Vec<double>>(),
    &kLayerKernels<Vec<float>>,
    &kLayerKernels<Vec<double>>,
    BFloat16Products::kOnTiles};

}  // namespace flash
