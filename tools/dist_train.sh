#!/usr/bin/env bash
# Train on several devices of one or more machines, one process per device.
set -euo pipefail

if [[ $# -lt 2 || $1 == -* ]] || ! [[ $2 =~ ^[1-9][0-9]*$ ]]; then
    cat >&2 <<'USAGE'
Usage: tools/dist_train.sh CONFIG GPUS [options of tools/train.py]

  CONFIG  config file
  GPUS    processes to start on this machine: one per GPU, or CPU processes
          (gloo) on a machine without one

Environment: NNODES (1) machines; NODE_RANK (0) number of this one, from 0;
  MASTER_ADDR (127.0.0.1) and PORT of machine 0 (a free port on one machine,
  else 29500); PYTHON (python) interpreter.

  tools/dist_train.sh CONFIG 8 --amp
  NNODES=2 NODE_RANK=1 MASTER_ADDR=10.0.0.1 tools/dist_train.sh CONFIG 8
USAGE
    exit 2
fi

config=$1
gpus=$2
shift 2

python=${PYTHON:-python}
nodes=${NNODES:-1}
port=${PORT:-29500}
if [[ $nodes == 1 && -z ${PORT:-} ]]; then
    # Two jobs on one machine must not meet on the same port.
    port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
fi

exec "$python" -m torch.distributed.run \
    --nnodes="$nodes" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="$port" \
    --nproc_per_node="$gpus" \
    "$(dirname "${BASH_SOURCE[0]}")/train.py" "$config" --launcher pytorch "$@"
