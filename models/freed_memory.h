#pragma once

namespace flash::models {

/// Lets the C library keep the memory that a training step frees for the next step, within its own
/// limits; takes effect once per process. Returning it to the kernel makes each step fault in the
/// same pages again, which takes up to a third of the time.
void keep_freed_memory();

}  // namespace flash::models
