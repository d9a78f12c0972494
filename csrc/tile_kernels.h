#pragma once
// The forward and backward of bfloat16 tensors, and of float ones in bfloat16 parts, and the
// product of two matrices of float, on the tile registers of one instruction set.
//
// The same source runs on Intel's AMX and on tiles emulated in C++, by which every CPU tests it.

#include <cstdint>

#include "csrc/kernels.h"

namespace flash {

/// The members of TypedKernels with the same names, for calls that csrc/generic/tile_table.h
/// selects.
struct TileKernels {
  bool (*supported)();  // may only be called on a CPU that supports the vectors
  WorkPlan (*forward_plan)(const ForwardParams&);
  int64_t (*forward_scratch_bytes)(const ForwardParams&);
  void (*forward)(const ForwardParams&, int64_t unit_begin, int64_t unit_end, void* scratch);
  WorkPlan (*backward_plan)(const BackwardParams&);
  int64_t (*backward_scratch_bytes)(const BackwardParams&);
  void (*backward)(const BackwardParams&, int64_t step, int64_t unit_begin, int64_t unit_end,
                   void* scratch);
  void (*product)(const ProductParams&, int64_t unit_begin, int64_t unit_end);
};

extern const TileKernels kAmxTileKernels;
extern const TileKernels kAvx512Bf16TileKernels;
extern const TileKernels kEmulatedTileKernels;

}  // namespace flash
