#!/usr/bin/env bash
# Installs the build dependencies in a manylinux_2_28 container: Cairo's headers, CMake, Ninja, and two
# header-only libraries in Debian's versions, which that distribution lacks or has in older versions.
set -euo pipefail

dnf install -y cairo-devel pkgconf-pkg-config
pipx install cmake==3.31.6
pipx install ninja==1.13.0
install() {  # <repository> <tag> <options of CMake>
  local folder
  folder=$(mktemp -d)
  git clone --quiet --depth 1 --branch "$2" "https://github.com/$1" "$folder"
  cmake -S "$folder" -B "$folder/build" -G Ninja "${@:3}"
  cmake --install "$folder/build"
}
install nlohmann/json v3.11.2 -DJSON_BuildTests=OFF
install CLIUtils/CLI11 v2.3.2 -DCLI11_BUILD_TESTS=OFF -DCLI11_BUILD_EXAMPLES=OFF
