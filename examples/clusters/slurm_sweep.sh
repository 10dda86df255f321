#!/bin/bash
# One SLURM job for each run of a sweep, on a disk that all nodes share. Start it on the login node, in the repository:
#
#   bash examples/clusters/slurm_sweep.sh quickstart ppo.kl_coef=0.02,0.05 seed=1,2 --runs /shared/runs
#
# A run starts when the runs whose stages it copies have ended; the last job writes table and plot and repeats what failed.
# The same command resumes. Adapt the lines below to your cluster.
#SBATCH --job-name=lowrank-rlhf-sweep
#SBATCH --output=slurm-%x-%A_%a.txt
#SBATCH --gpus=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --time=08:00:00
#SBATCH --signal=B:TERM@300  # before the time is up the run saves its work and ends; the same command resumes
set -euo pipefail
python=${PYTHON:-.venv/bin/python}

case ${SWEEP_JOB:-} in
    run) exec "$python" -m lowrank_rlhf sweep "$@" --only "$SLURM_ARRAY_TASK_ID" ;;
    table) exec "$python" -m lowrank_rlhf sweep "$@" ;;
esac
waves=$("$python" -m lowrank_rlhf sweep "$@" --dry-run --json | "$python" -c '
import json, sys
runs, wave = json.load(sys.stdin)["runs"], {}
for run in runs:
    wave[run["run"]] = max((wave[donor] + 1 for donor in run["shares"].values()), default=0)
for number in sorted(set(wave.values())):
    print(*[place for place, found in enumerate(wave.values(), 1) if found == number], sep=",")
')
after=()
for numbers in $waves; do
    job=$(sbatch --parsable --export=ALL,SWEEP_JOB=run --array="$numbers" "${after[@]}" "$0" "$@")
    echo "Runs $numbers: job $job"
    after=(--dependency="afterany:$job")
done
job=$(sbatch --parsable --export=ALL,SWEEP_JOB=table "${after[@]}" "$0" "$@")
echo "Table and plot: job $job"
