// Compiled with -mavx512f -mavx512dq. As in avx2/kernels.cpp, no code of this file may run before
// dispatch.cpp has checked the CPU.

#include "csrc/avx512/vec.h"
#include "csrc/generic/table.h"

namespace flash {

extern const KernelTable kAvx512Kernels;
constinit const KernelTable kAvx512Kernels = {"avx512",
                                              "x86-64 AVX-512 F and DQ",
                                              [] {
                                                return __builtin_cpu_supports("avx512f") != 0 &&
                                                       __builtin_cpu_supports("avx512dq") != 0;
                                              },
                                              typed_kernels<Vec<float>>(),
                                              typed_kernels<Vec<double>>(),
                                              &kLayerKernels<Vec<float>>,
                                              &kLayerKernels<Vec<double>>};

}  // namespace flash
