#!/usr/bin/env bash
# The tests, all of them or those that an expression chooses: tools/test.sh PYTHON [PYTEST ARGUMENT...]
#
# Unit tests share the cores; what starts ranks and engines fills them by itself. The last line says
# what was left out, and which command brings what it needs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$1
shift

SCOPE_MEGATRON_LEFT_OUT=$(mktemp)
export SCOPE_MEGATRON_LEFT_OUT
trap 'rm -f "$SCOPE_MEGATRON_LEFT_OUT"' EXIT

failed=0 chosen=0
tests() {
    local code=0
    "$python" -m pytest -q "$@" || code=$?
    case $code in
        0) chosen=1 ;;
        2) exit 2 ;; # interrupted
        5) ;;        # the arguments chose none there
        *) failed=1 ;;
    esac
}
tests -n 2 --dist worksteal tests/unit "$@"
tests tests --ignore tests/unit "$@"
"$python" -m tests.support.left_out "$SCOPE_MEGATRON_LEFT_OUT"
((failed == 0 && chosen == 1))
