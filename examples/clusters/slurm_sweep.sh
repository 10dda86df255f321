#!/bin/bash
# One SLURM job for each run of a sweep, on a disk that all nodes share. Start it on the login node, in the repository:
#
#   bash examples/clusters/slurm_sweep.sh quickstart ppo.kl_coef=0.02,0.05 seed=1,2 --runs /shared/runs
#
# The first run makes the stages that all share; the others start when it is done; the last job writes table and plot
# and repeats what failed. The same command resumes. Adapt the lines below to your cluster.
#SBATCH --job-name=lowrank-rlhf-sweep
#SBATCH --output=slurm-%x-%A_%a.txt
#SBATCH --gpus=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --time=08:00:00
#SBATCH --signal=B:TERM@300  # before the time is up the run saves its work and ends; the same command resumes
set -euo pipefail
python=${PYTHON:-.venv/bin/python}

if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    exec "$python" -m lowrank_rlhf sweep "$@" --only "$SLURM_ARRAY_TASK_ID"
elif [ -n "${SLURM_JOB_ID:-}" ]; then
    exec "$python" -m lowrank_rlhf sweep "$@"
fi
count=$("$python" -m lowrank_rlhf sweep "$@" --dry-run --json |
    "$python" -c 'import json, sys; print(len(json.load(sys.stdin)["runs"]))')
first=$(sbatch --parsable --array=1 "$0" "$@")
rest=$(sbatch --parsable --array="2-$count" --dependency="afterok:$first" "$0" "$@")
table=$(sbatch --parsable --dependency="afterany:$rest" "$0" "$@")
echo "Submitted $count runs: jobs $first, $rest; table and plot: job $table"
