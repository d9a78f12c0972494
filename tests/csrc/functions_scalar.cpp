#include "csrc/scalar/vec.h"
#include "tests/csrc/exp_check.h"
#include "tests/csrc/storage_check.h"
#include "tests/csrc/tanh_check.h"

namespace flash {

ExpReport scalar_exp_float() { return check_exp<Vec<float>>(); }
ExpReport scalar_exp_double() { return check_exp<Vec<double>>(); }
double scalar_exp_of_every_float() { return check_exp_of_every_float<Vec<float>>(); }
TanhReport scalar_tanh_float() { return check_tanh<Vec<float>>(); }
TanhReport scalar_tanh_double() { return check_tanh<Vec<double>>(); }
StorageReport scalar_bfloat16() { return check_storage<Vec<float>, BFloat16>(); }
StorageReport scalar_half() { return check_storage<Vec<float>, Half>(); }

}  // namespace flash
