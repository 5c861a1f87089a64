#!/usr/bin/env bash
# Training on Slurm without submitit: one torchrun a node. Change the resources here or on sbatch's command line:
#   sbatch --nodes=2 --partition=gpu scripts/launchers/train_slurm.sh --config-file CONFIG OUTPUT_DIR /shared/runs/r50
# Submit it from the repository with the environment active; Slurm passes both on to the job. Stores, images and
# OUTPUT_DIR must lie where all nodes see them. A job that was requeued (preemption, a failed node, or time that
# ran out) goes on from its newest checkpoint.
#SBATCH --job-name=longtail_det2
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
#SBATCH --signal=B:USR2@120
set -euo pipefail

if [ -z "${SLURM_JOB_ID:-}" ]; then
    echo "error: this runs inside a Slurm job: sbatch $0 --config-file CONFIG" >&2
    exit 2
fi

# Slurm sends USR2 to this script two minutes before the time is up.
# shellcheck disable=SC2329  # called by the trap
requeue() {
    echo "time is nearly up: requeueing job $SLURM_JOB_ID"
    scontrol requeue "$SLURM_JOB_ID"
}
trap requeue USR2

resume=()
if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]; then
    resume=(--resume)
fi

read -r MASTER_ADDR < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 10000))}
PROCESSES_PER_NODE=${PROCESSES_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
export MASTER_ADDR MASTER_PORT PROCESSES_PER_NODE

# SLURM_NODEID differs between the nodes, so it is read there: hence the inner bash.
# shellcheck disable=SC2016
srun --kill-on-bad-exit=1 bash -c 'exec torchrun \
    --nnodes "$SLURM_JOB_NUM_NODES" --node-rank "$SLURM_NODEID" --nproc-per-node "$PROCESSES_PER_NODE" \
    --master-addr "$MASTER_ADDR" --master-port "$MASTER_PORT" \
    scripts/train_net.py "$@"' torchrun "${resume[@]}" "$@" &
step=$!

# A trapped signal ends `wait` early (status above 128); the step itself may go on.
status=0
wait "$step" || status=$?
while [ "$status" -gt 128 ] && kill -0 "$step" 2>/dev/null; do
    status=0
    wait "$step" || status=$?
done
exit "$status"
