#!/usr/bin/env bash
# Programs of the system that parts of the project and of its tests use: tools/system_deps.sh [--missing]
#
# Installs with apt what is not there, as root or by sudo. --missing only lists the packages.
set -euo pipefail

# A program that shows it, the packages that bring it, and what for.
DEPS=(
    "bwrap:bubblewrap:the code verifier's sandbox"
    "chromium:chromium fonts-dejavu-core:tests of the page of view"
    "slurmctld:slurm-wlm:tests of Slurm jobs"
    "munged:munge:tests of Slurm jobs"
    "rsync:rsync:nemo-run's copies to a cluster"
)
PATH=$PATH:/usr/sbin:/sbin

missing=()
for dep in "${DEPS[@]}"; do
    IFS=: read -r program packages _ <<<"$dep"
    command -v "$program" >/dev/null || missing+=($packages)
done
if [[ ${1:-} == --missing ]]; then
    echo "${missing[*]}"
    exit 0
fi
if ((${#missing[@]} == 0)); then
    echo "system_deps: all there"
    exit 0
fi

if ! command -v apt-get >/dev/null; then
    echo "system_deps: no apt-get here; install with this system's own tool: ${missing[*]}" >&2
    exit 1
fi
as_root=(env DEBIAN_FRONTEND=noninteractive)
[[ $(id -u) == 0 ]] || as_root=(sudo "${as_root[@]}")
echo "system_deps: ${as_root[*]} apt-get install ${missing[*]}"
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
echo "system_deps: all there"
