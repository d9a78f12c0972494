// Compiled with the flags of avx512/kernels.cpp and AVX512-BF16. As there, no code of this file may
// run before dispatch.cpp has checked the CPU.

#include "csrc/avx512/vec.h"
#include "csrc/avx512_bf16/tiles.h"
#include "csrc/generic/tile_kernels.h"

namespace flash {

constinit const TileKernels kAvx512Bf16TileKernels = tile_kernels<Vec<float>, VectorTiles>();

}  // namespace flash
