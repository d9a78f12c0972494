#pragma once
// How much memory this process can still allocate.

#include <string>

namespace flash::models {

/// Bytes that this process can use before the kernel kills it: the available memory of the machine,
/// or what the container's limit leaves, whichever is less. Infinity if neither is known.
double available_memory();

/// "1.5 GB", for messages.
std::string in_gigabytes(double bytes);

}  // namespace flash::models
