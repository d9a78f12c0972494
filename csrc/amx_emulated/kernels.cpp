// Compiled with the flags of avx2/kernels.cpp or neon/kernels.cpp.

#include "csrc/amx_emulated/tiles.h"
#if defined(__aarch64__)
#include "csrc/neon/vec.h"
#else
#include "csrc/avx2/vec.h"
#endif
#include "csrc/generic/tile_kernels.h"

namespace flash {

constinit const TileKernels kEmulatedTileKernels = tile_kernels<Vec<float>, EmulatedTiles>();

}  // namespace flash
