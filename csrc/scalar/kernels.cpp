#include "csrc/generic/table.h"
#include "csrc/scalar/vec.h"

namespace flash {

extern const KernelTable kScalarKernels;
constinit const KernelTable kScalarKernels = {"scalar",
                                              "portable C++, one element at a time",
                                              [] { return true; },
                                              typed_kernels<Vec<float>>(),
                                              typed_kernels<Vec<double>>(),
                                              &kLayerKernels<Vec<float>>,
                                              &kLayerKernels<Vec<double>>};

}  // namespace flash
