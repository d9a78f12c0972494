#!/usr/bin/env bash
# repair_wheel.sh <folder> <wheel>: writes the wheel into <folder>, tagged with the oldest glibc that
# it runs on. The three excluded libraries ship with torch; any other external library is an error.
set -euo pipefail

auditwheel repair --exclude libtorch_cpu.so --exclude libc10.so --exclude libgomp.so.1 \
  --wheel-dir "$1" "$2"
