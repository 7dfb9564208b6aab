#!/bin/sh
# install.sh PIP-ARGUMENTS...: packages into the environment $VENV, as small as they come. For the Dockerfile.
#
# The tests that packages install beside themselves are 17 MB and never imported, uvloop's debug symbols are 14 MB. Bytecode
# is written now: a container with a read-only root cannot write it later, and would compile for seconds at every start.
set -eu
pip --python "$VENV/bin/python" install --no-cache-dir --no-compile "$@"
find "$VENV" -type d -name tests -prune -exec rm -rf {} +
strip --strip-debug "$VENV"/lib/python3*/site-packages/uvloop/loop.*.so
"$VENV/bin/python" -m compileall -qq -j 0 "$VENV/lib" || true # torch carries files in the syntax of later Pythons
