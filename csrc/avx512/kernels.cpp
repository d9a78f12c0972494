// Compiled with -mavx512f -mavx512dq. As in avx2/kernels.cpp, no code of this file may run before
// dispatch.cpp has checked the CPU.

#include "csrc/avx512/vec.h"
#include "csrc/generic/tile_table.h"

namespace flash {
namespace {

bool supports_avx512() {
  return __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512dq") != 0;
}

}  // namespace

extern const KernelTable kAmxKernels;
constinit const KernelTable kAmxKernels = {
    "amx",
    "x86-64 AMX tiles for bfloat16, AVX-512 F and DQ otherwise",
    [] { return supports_avx512() && kAmxTileKernels.supported(); },
    typed_kernels_with_tiles<Vec<float>, kAmxTileKernels>(),
    typed_kernels<Vec<double>>(),
    &kLayerKernels<Vec<float>>,
    &kLayerKernels<Vec<double>>,
    BFloat16Products::kOnTiles};

extern const KernelTable kAvx512Bf16Kernels;
constinit const KernelTable kAvx512Bf16Kernels = {
    "avx512-bf16",
    "x86-64 AVX512-BF16 and BW for bfloat16, AVX-512 F and DQ otherwise",
    [] { return supports_avx512() && kAvx512Bf16TileKernels.supported(); },
    typed_kernels_with_tiles<Vec<float>, kAvx512Bf16TileKernels>(),
    typed_kernels<Vec<double>>(),
    &kLayerKernels<Vec<float>>,
    &kLayerKernels<Vec<double>>,
    BFloat16Products::kOnVectors};

extern const KernelTable kAvx512Kernels;
constinit const KernelTable kAvx512Kernels = {"avx512",
                                              "x86-64 AVX-512 F and DQ",
                                              supports_avx512,
                                              typed_kernels<Vec<float>>(),
                                              typed_kernels<Vec<double>>(),
                                              &kLayerKernels<Vec<float>>,
                                              &kLayerKernels<Vec<double>>};

}  // namespace flash
