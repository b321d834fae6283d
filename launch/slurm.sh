#!/bin/bash
# A sweep on a Slurm cluster: an array of independent jobs, or one job of several nodes.
#
#   sbatch --array=0-7 launch/slurm.sh MANIFEST.jsonl --out DIR [options of `jax3d sweep`]
#   sbatch --nodes=4 --ntasks-per-node=8 launch/slurm.sh MANIFEST.jsonl --out DIR [options]
#
# An array's jobs begin when they can, each on its share; a job that Slurm kills or requeues goes on
# where it was. Use it unless the cluster gives out whole blocks of nodes only. A task takes one
# GPU. DIR is seen by all nodes. When all is done, `jax3d sweep MANIFEST.jsonl --out DIR` with the
# same options on any machine, where nothing is left to make, tidies up.
#
#SBATCH --job-name=jax3d
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=8
#SBATCH --mem-per-cpu=4G
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --output=jax3d-%A-%a.log
set -euo pipefail

if [[ $# -eq 0 ]]; then
  echo "usage: sbatch [--array=0-N | --nodes=N] $0 MANIFEST.jsonl --out DIR [options]" >&2
  exit 2
fi

# A job that is started again compiles nothing that any job of the user compiled before.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$HOME/.cache/jax3d}
jax3d=${JAX3D:-jax3d}

if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then
  first=${SLURM_ARRAY_TASK_MIN:?}  # the array has no gaps
  process=$((SLURM_ARRAY_TASK_ID - first))
  exec "$jax3d" sweep "$@" --wait --processes "$SLURM_ARRAY_TASK_COUNT" --process "$process"
fi
# `srun` tells each task its number; a task that fails does not end the others.
exec srun --kill-on-bad-exit=0 "$jax3d" sweep "$@" --wait --distributed
