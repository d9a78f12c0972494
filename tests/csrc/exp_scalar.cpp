#include "csrc/scalar/vec.h"
#include "tests/csrc/exp_check.h"

namespace flash {

ExpReport scalar_exp_float() { return check_exp<Vec<float>>(); }
ExpReport scalar_exp_double() { return check_exp<Vec<double>>(); }

}  // namespace flash
