#!/usr/bin/env bash
# Train with several processes, one per GPU, or on CPUs where there is no GPU.
#
#   tools/dist_train.sh CONFIG PROCESSES [arguments of tools/train.py]
#
# Several machines: run it on each with NNODES, NODE_RANK, MASTER_ADDR and PORT set.
set -euo pipefail

if [ $# -lt 2 ]; then
    sed -n '2,6s/^# \{0,1\}//p' "$0"
    exit 2
fi
TOOLS="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source "$TOOLS/dist_common.sh"
launch "$2" "$TOOLS/train.py" "$1" "${@:3}"
