#!/usr/bin/env bash
# The kernels' tests under AddressSanitizer and UndefinedBehaviorSanitizer, with a build of their own in build/sanitize.
# Needs GCC, and an environment with the extra `dev` in .venv (make test makes it), or the Python in $PYTHON.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-$PWD/.venv/bin/python}
CXX=${CXX:-g++}
BUILD=$PWD/build/sanitize

"$PYTHON" -m pip install --quiet 'nanobind>=2.9,<4' 'cmake>=3.20,<5' 'ninja>=1.10,<2'
"$PYTHON" -m cmake -S native -B "$BUILD" -G Ninja -DCMAKE_CXX_COMPILER="$CXX" -DQUEPT_SANITIZE=ON \
  -DPython_EXECUTABLE="$PYTHON" -DCMAKE_MAKE_PROGRAM="$("$PYTHON" -c 'import shutil, sysconfig; print(shutil.which("ninja", path=sysconfig.get_path("scripts")))')"
"$PYTHON" -m cmake --build "$BUILD"

# A copy of the package, in which the other build cannot be taken for this one.
rm -rf "$BUILD/package"
mkdir -p "$BUILD/package"
cp -r src/quept "$BUILD/package/quept"
rm -f "$BUILD"/package/quept/ops/_native*.so
cp "$BUILD"/_native*.so "$BUILD/package/quept/ops/"

# Every allocation goes through the sanitizer, tensors' and Python's; what Python never frees is no leak of ours.
export LD_PRELOAD="$("$CXX" -print-file-name=libasan.so) $("$CXX" -print-file-name=libubsan.so)"
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
PYTHONMALLOC=malloc PYTHONPATH="$BUILD/package" "$PYTHON" -m pytest -p no:cacheprovider tests/ops "$@"
