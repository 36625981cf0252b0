#!/usr/bin/env bash
# C++ tests: plain, and under ASan with UBSan, and under TSan.
#   usage: scripts/test_native.sh [PRESET …]      default: cpu asan tsan
set -euo pipefail
cd "$(dirname "$0")/../cpp"
jobs="$(nproc)"
for preset in ${*:-cpu asan tsan}; do
  cmake --preset "$preset" >/dev/null
  cmake --build --preset "$preset" --parallel "$jobs"
  ctest --preset "$preset" --parallel "$jobs"
done
