#pragma once
// The results of a run, as printed tables and as JSON.

#include <optional>
#include <ostream>
#include <string>

#include "train/command/settings.h"
#include "train/loop/trainer.h"
#include "train/output/evaluation.h"

namespace flash::models {

/// Resident memory of this process in bytes, from the kernel; 0 if unknown.
struct ProcessMemory {
  int64_t now;
  int64_t peak;
};
ProcessMemory process_memory();

struct RunReport {
  std::string csv;
  ModelSettings model;
  std::string loss;
  int threads;
  int64_t season;
  int64_t parameters;
  std::optional<TrainingSettings> training_settings;  ///< nullopt if nothing was trained
  std::optional<TrainingResult> training;
  int64_t memory_before_bytes;  ///< resident just before the first step
  int64_t memory_peak_bytes;
  Evaluation test;
};

/// Prints a table of the test errors.
void print_report(std::ostream& stream, const RunReport& report);

/// Throws c10::ValueError if the file cannot be written.
void write_report(const std::string& path, const RunReport& report);

}  // namespace flash::models
