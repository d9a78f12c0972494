#pragma once
// The kernels of one instruction set as a table of functions; csrc/dispatch.h chooses a table.
//
// Files compiled with instruction-set flags include this header, so it uses no standard container.

#include <cstdint>

#include "csrc/params.h"

namespace flash {

/// The work of one call, split into units that may run on any thread in any order.
/// Units of one step write to disjoint memory; a step starts after the previous one has finished.
/// Units g * steps … (g + 1) * steps - 1 form group g. Groups write to disjoint memory in all
/// steps, so a step of a group waits only for the previous step of the same group. The split
/// depends on the problem only, never on the number of threads, so results are bit-identical for
/// any number of threads.
struct WorkPlan {
  int64_t units;
  int64_t steps;
  int64_t flops_per_unit;  ///< an estimate, used to decide how many units to give a thread
};

/// Functions for one dtype. `scratch` is `*_scratch_bytes` of 64-byte aligned memory per thread.
struct TypedKernels {
  WorkPlan (*forward_plan)(const ForwardParams&);
  int64_t (*forward_scratch_bytes)(const ForwardParams&);
  void (*forward)(const ForwardParams&, int64_t unit_begin, int64_t unit_end, void* scratch);

  /// Whether a query attends at least one key, given masks and windows.
  bool (*attends_any)(const ForwardParams&, int64_t batch, int64_t head, int64_t query);

  WorkPlan (*backward_plan)(const BackwardParams&);
  int64_t (*backward_scratch_bytes)(const BackwardParams&);
  void (*backward)(const BackwardParams&, int64_t step, int64_t unit_begin, int64_t unit_end,
                   void* scratch);

  // Each of these has one step and needs no scratch.
  WorkPlan (*dropout_plan)(const DropoutParams&);
  void (*dropout)(const DropoutParams&, int64_t unit_begin, int64_t unit_end);
  WorkPlan (*product_plan)(const ProductParams&);
  void (*product)(const ProductParams&, int64_t unit_begin, int64_t unit_end);
  WorkPlan (*sparsity_plan)(const SparsityParams&);
  void (*sparsity)(const SparsityParams&, int64_t unit_begin, int64_t unit_end);
  WorkPlan (*aggregation_plan)(const AggregationParams&);
  void (*aggregation)(const AggregationParams&, int64_t unit_begin, int64_t unit_end);
  WorkPlan (*correlation_plan)(const CorrelationParams&);
  void (*correlation)(const CorrelationParams&, int64_t unit_begin, int64_t unit_end);
};

/// The loops of the models' layers; defined in csrc/layer_kernels.h.
template <class T>
struct LayerKernels;

/// Where a table forms products of bfloat16, for the calls that tile_table.h names. On matrix
/// tiles, float in parts gains, too.
enum class BFloat16Products { kNone, kOnVectors, kOnTiles };

struct KernelTable {
  const char* name;  ///< the value of FLASH_ATTENTION_ISA that selects this table
  const char* description;
  bool (*supported)();  ///< whether this CPU and its operating system can run it
  TypedKernels f32;
  TypedKernels f64;
  const LayerKernels<float>* layers_f32;
  const LayerKernels<double>* layers_f64;
  BFloat16Products bfloat16_products = BFloat16Products::kNone;
};

}  // namespace flash
