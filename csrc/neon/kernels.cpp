#include "csrc/generic/tile_table.h"
#include "csrc/neon/vec.h"

namespace flash {

extern const KernelTable kNeonKernels;
constinit const KernelTable kNeonKernels = {"neon",
                                            "aarch64 NEON",
                                            [] { return true; },
                                            typed_kernels<Vec<float>>(),
                                            typed_kernels<Vec<double>>(),
                                            &kLayerKernels<Vec<float>>,
                                            &kLayerKernels<Vec<double>>};

extern const KernelTable kEmulatedAmxKernels;
constinit const KernelTable kEmulatedAmxKernels = {
    "amx-emulated",
    "for tests: amx with its tiles emulated, NEON otherwise",
    [] { return true; },
    typed_kernels_with_tiles<Vec<float>, kEmulatedTileKernels>(),
    typed_kernels<Vec<double>>(),
    &kLayerKernels<Vec<float>>,
    &kLayerKernels<Vec<double>>,
    BFloat16Products::kOnTiles};

}  // namespace flash
