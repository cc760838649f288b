#!/usr/bin/env bash
# Train on a Slurm cluster, one task per GPU.
set -euo pipefail

if [[ $# -lt 3 || $1 == -* || $2 == -* || $3 == -* ]]; then
    cat >&2 <<'USAGE'
Usage: tools/slurm_train.sh PARTITION JOB_NAME CONFIG [WORK_DIR] [options of tools/train.py]

  WORK_DIR  where checkpoints and logs go (default: work_dirs/<name of CONFIG>)

Environment: GPUS (8) in all; GPUS_PER_NODE (8, or GPUS if fewer);
  CPUS_PER_TASK (5); SRUN_ARGS further options of srun, separated by spaces;
  PYTHON (python) interpreter.

  GPUS=16 tools/slurm_train.sh gpu rla CONFIG work_dirs/rla --amp
USAGE
    exit 2
fi

partition=$1
job_name=$2
config=$3
shift 3
options=(--launcher slurm)
if [[ $# -gt 0 && $1 != -* ]]; then
    options+=(--work-dir "$1")
    shift
fi

gpus=${GPUS:-8}
per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
read -ra srun_args <<<"${SRUN_ARGS:-}"
if ! command -v srun >/dev/null; then
    echo "srun was not found: run this on a machine of the Slurm cluster," \
        "or use tools/dist_train.sh" >&2
    exit 127
fi

exec srun \
    --partition="$partition" \
    --job-name="$job_name" \
    --gres="gpu:$per_node" \
    --ntasks="$gpus" \
    --ntasks-per-node="$per_node" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 \
    ${srun_args[@]+"${srun_args[@]}"} \
    "${PYTHON:-python}" -u "$(dirname "${BASH_SOURCE[0]}")/train.py" "$config" "${options[@]}" "$@"
