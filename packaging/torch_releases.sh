#!/usr/bin/env bash
# Prints the releases of torch that requirements.txt allows, one per line: 2.13 and so on.
set -euo pipefail

read -r first end < <(sed -n 's/^torch>=2\.\([0-9]*\),<2\.\([0-9]*\).*/\1 \2/p' \
  "$(dirname "${BASH_SOURCE[0]}")/../requirements.txt")
seq -f 2.%g "$first" $((end - 1))
