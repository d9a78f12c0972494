#pragma once
// The one table of tolerances of the C++ tests; each entry says why it is what it is.

namespace flash::tests {

// float64 models, values of order 1 to 30 through some twenty operations: rounding stays below
// 1e-12, and any real difference (a transposed head, a missing bias) is above 1e-6.
inline constexpr double kModelFloat64 = 1e-10;

// The same for FEDformer's cross attention: its complex tanh has poles, near which the rounding of
// its argument is multiplied by the square of the distance's inverse.
inline constexpr double kModelFedformerCross = 1e-7;

// float32 models: a fixture records how far the Python original itself is from float64. Another
// order of summation may be off by a few times that, and never needs to be closer than 1e-5 on
// values of order 1.
inline constexpr double kModelFloat32TimesPython = 5.0;
inline constexpr double kModelFloat32 = 1e-5;

// Flash against standard attention over a few training steps in float32: each step's rounding feeds
// the next through Adam, whose normalisation turns relative differences of 1e-6 into steps of the
// same size.
inline constexpr double kTrainingLossFloat32 = 1e-4;

// Flash against standard attention in float64, values of order 1: the integration guide's figure.
// Rounding is far below it (1e-13); a wrong scale, mask or head is far above.
inline constexpr double kGuideFloat64 = 1e-10;

// The operator against standard attention or a loop in double, values of order 1. float32: each
// side is within a few units in the last place of numbers up to 10 (the exact comparison with the
// float64 truth is in the Python tests). float64: the same units, 5e8 times smaller.
inline constexpr double kOperatorFloat32 = 2e-5;
inline constexpr double kOperatorFloat64 = 1e-12;

}  // namespace flash::tests
