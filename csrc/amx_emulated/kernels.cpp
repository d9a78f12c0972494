// Compiled with the flags of avx2/kernels.cpp.

#include "csrc/amx_emulated/tiles.h"
#include "csrc/avx2/vec.h"
#include "csrc/generic/tile_kernels.h"

namespace flash {

constinit const TileKernels kEmulatedTileKernels = tile_kernels<Vec<float>, EmulatedTiles>();

}  // namespace flash
