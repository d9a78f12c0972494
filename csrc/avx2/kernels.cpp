// Compiled with -mavx2 -mfma -mf16c. No code of this file may run before dispatch.cpp has checked
// the CPU, so the table is a constant, and `supported` uses a compiler built-in that needs no AVX.

#include "csrc/avx2/vec.h"
#include "csrc/generic/table.h"

namespace flash {

extern const KernelTable kAvx2Kernels;
constinit const KernelTable kAvx2Kernels = {"avx2",
                                            "x86-64 AVX2, FMA and F16C",
                                            [] {
                                              return __builtin_cpu_supports("avx2") != 0 &&
                                                     __builtin_cpu_supports("fma") != 0 &&
                                                     __builtin_cpu_supports("f16c") != 0;
                                            },
                                            typed_kernels<Vec<float>>(),
                                            typed_kernels<Vec<double>>(),
                                            &kLayerKernels<Vec<float>>,
                                            &kLayerKernels<Vec<double>>};

}  // namespace flash
