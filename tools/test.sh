#!/usr/bin/env bash
# The tests, all of them or those that an expression chooses: tools/test.sh PYTHON [PYTEST ARGUMENT...]
#
# The last line says what was left out, and which command brings what it needs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$1
shift

SCOPE_MEGATRON_LEFT_OUT=$(mktemp)
export SCOPE_MEGATRON_LEFT_OUT
trap 'rm -f "$SCOPE_MEGATRON_LEFT_OUT"' EXIT

# A file is one worker's, so that what its tests share is made once; those of minutes come first.
# Two workers: what starts ranks and engines waits as much as it computes.
code=0
"$python" -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder \
    tests/e2e tests/slurm tests/faults tests/sandbox tests/distributed tests/unit tests/gpu "$@" || code=$?
"$python" -m tests.support.left_out "$SCOPE_MEGATRON_LEFT_OUT"
exit $code
