#pragma once
// How much memory may still be asked for.

#include <string>

namespace flash::models {

/// Bytes that this process can use without the kernel ending it: what is free or can be freed on
/// the machine, or a container's limit if that is less. Infinity where neither is known.
double available_memory();

/// "1.5 GB", for messages.
std::string in_gigabytes(double bytes);

}  // namespace flash::models
