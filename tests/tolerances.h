#pragma once
// The tolerances of the C++ tests, each with its reason.

namespace flash::tests {

// float64 models, values of order 1 to 30 through about twenty operations: rounding stays below
// 1e-12. Any real error (a transposed head, a missing bias) is above 1e-6.
inline constexpr double kModelFloat64 = 1e-10;

// The same for FEDformer's cross attention: its complex tanh has poles. At distance d from a pole,
// the rounding error of the argument is multiplied by 1 / d^2.
inline constexpr double kModelFedformerCross = 1e-7;

// float32 models: a fixture records the difference between float32 and float64 of the Python
// original. Another summation order may be off by a few times that; 1e-5 is always allowed on
// values of order 1.
inline constexpr double kModelFloat32TimesPython = 5.0;
inline constexpr double kModelFloat32 = 1e-5;

// Flash against standard attention over a few training steps in float32: the rounding errors of
// each step feed the next through Adam, whose normalization turns relative differences of 1e-6 into
// steps of the same size.
inline constexpr double kTrainingLossFloat32 = 1e-4;

// Flash against standard attention in float64, values of order 1, as the integration guide states.
// Rounding is far below (1e-13); a wrong scale, mask or head is far above.
inline constexpr double kGuideFloat64 = 1e-10;

// The operator against standard attention or a loop in double, values of order 1. float32: each
// side is within a few units in the last place of values up to 10 (the Python tests compare with
// the float64 reference more tightly). float64: the same units, 5e8 times smaller.
inline constexpr double kOperatorFloat32 = 2e-5;

// bfloat16 on matrix tiles rounds weights and score gradients to bfloat16 once more, each by at
// most 2^-9 of itself. Relative to the largest element of a tensor; the largest error over all
// shapes and options of the tests of the kernels is 2^-7.3.
inline constexpr double kTileRounding = 0x1p-6;
inline constexpr double kOperatorFloat64 = 1e-12;

}  // namespace flash::tests
