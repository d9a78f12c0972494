// Compiled with the flags of avx512/kernels.cpp; the assembler needs none for AMX. As there, no
// code of this file may run before dispatch.cpp has checked the CPU.

#include "csrc/amx/tiles.h"
#include "csrc/avx512/vec.h"
#include "csrc/generic/tile_kernels.h"

namespace flash {

constinit const TileKernels kAmxTileKernels = tile_kernels<Vec<float>, AmxTiles>();

}  // namespace flash
