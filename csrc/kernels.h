#pragma once
// The kernels of one instruction set as a table of functions, and the choice of a table at run
// time.

#include <cstdint>
#include <string>
#include <vector>

#include "csrc/params.h"

namespace flash {

/// The work of one call, cut into units that may run on any thread in any order.
/// Units of one step write to disjoint memory; a step starts when the one before has ended.
/// The cut depends on the problem only, never on the number of threads, so the bits do not either.
struct WorkPlan {
  int64_t units;
  int64_t steps;
  int64_t flops_per_unit;  ///< rough, to decide how many units are worth a thread
};

/// Functions for one dtype. `scratch` is 64-byte aligned, `*_scratch_bytes` long, one per thread.
struct TypedKernels {
  WorkPlan (*forward_plan)(const ForwardParams&);
  int64_t (*forward_scratch_bytes)(const ForwardParams&);
  void (*forward)(const ForwardParams&, int64_t unit_begin, int64_t unit_end, void* scratch);

  /// Whether a query attends some key, masks and windows considered.
  bool (*attends_any)(const ForwardParams&, int64_t batch, int64_t head, int64_t query);

  WorkPlan (*backward_plan)(const BackwardParams&);
  int64_t (*backward_scratch_bytes)(const BackwardParams&);
  void (*backward)(const BackwardParams&, int64_t step, int64_t unit_begin, int64_t unit_end,
                   void* scratch);

  // One step each, and no scratch.
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

/// The loops of the models' layers, in layer_kernels.h.
template <class T>
struct LayerKernels;

struct KernelTable {
  const char* name;  ///< as FLASH_ATTENTION_ISA spells it
  const char* description;
  bool (*supported)();  ///< whether this CPU and its operating system can run it
  TypedKernels f32;
  TypedKernels f64;
  const LayerKernels<float>* layers_f32;
  const LayerKernels<double>* layers_f64;
};

/// Marks what the library of kernels exports.
#define FLASH_KERNELS_API __attribute__((visibility("default")))

/// Every table compiled in, best first; the scalar one is last and always supported.
FLASH_KERNELS_API const std::vector<const KernelTable*>& all_kernels();

/// The table that FLASH_ATTENTION_ISA names, or else the best that the CPU supports and
/// ATEN_CPU_CAPABILITY allows. Read once per process.
/// Throws std::invalid_argument if FLASH_ATTENTION_ISA is unknown or not supported here.
FLASH_KERNELS_API const KernelTable& active_kernels();

/// Makes the table of this name the active one from the next call of a kernel on, so that one
/// process can test all of them. Returns the one that was active. Throws as `active_kernels`.
FLASH_KERNELS_API const KernelTable& use_kernels(const char* name);

/// The choice behind `active_kernels`, for tests: the two variables as given, null where unset.
FLASH_KERNELS_API const KernelTable& choose_kernels(const char* flash_attention_isa,
                                                    const char* aten_cpu_capability);

/// The portable table, for `use_simd = false`.
FLASH_KERNELS_API const KernelTable& scalar_kernels();

}  // namespace flash
