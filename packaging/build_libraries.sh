#!/usr/bin/env bash
# build_libraries.sh <folder> [python]: compiles the libraries of the wheel, for every release of torch
# that requirements.txt allows, into <folder>/package. JOBS=... sets the number of concurrent compilers.
#
# Compiling needs torch's wheel but not the dependencies of a CUDA build. The kernels do not depend on
# torch and are compiled once: the builds for later releases reuse those of the first.
set -euo pipefail

folder=$(mkdir -p "$1" && cd "$1" && pwd)
python=${2:-python3}
cd "$(dirname "${BASH_SOURCE[0]}")/.."

rm -rf "$folder/package"
kernels=
for release in $(packaging/torch_releases.sh); do
  torch=$folder/torch-$release build=$folder/build-$release
  if [ ! -e "$torch/.ready" ]; then
    "$python" -m pip --disable-pip-version-check install --quiet --no-deps --upgrade \
      --target "$torch" "torch==$release.*"
    touch "$torch/.ready"
  fi
  cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DFLASH_ATTENTION_BUILD_TESTS=OFF \
    -DFLASH_ATTENTION_KERNELS="$kernels" -DCMAKE_PREFIX_PATH="$torch/torch/share/cmake"
  cmake --build "$build" --parallel "${JOBS:-$(nproc)}" \
    --target flash_attention flash_models flash_train_program
  cmake --install "$build" --component libraries --prefix "$folder/package" >"$build/install.log"
  kernels=${kernels:-$build}
done
