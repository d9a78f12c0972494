#include "available_memory.h"

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <limits>

namespace flash::models {
namespace {

constexpr double kUnknown = std::numeric_limits<double>::infinity();

double of_machine() {
  std::ifstream file("/proc/meminfo");
  std::string name, unit;
  for (double kilobytes = 0; file >> name >> kilobytes; std::getline(file, unit)) {
    if (name == "MemAvailable:") return kilobytes * 1024;
  }
  return kUnknown;
}

/// A limit of the control group; "max" means none.
double of_container() {
  std::ifstream file("/sys/fs/cgroup/memory.max");
  double bytes = 0;
  return file >> bytes ? bytes : kUnknown;
}

}  // namespace

double available_memory() { return std::min(of_machine(), of_container()); }

std::string in_gigabytes(double bytes) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.3g GB", bytes / 1e9);
  return text;
}

}  // namespace flash::models
