#!/bin/bash
# Caption the shards of a data set on Slurm: an array of workers with one GPU each, which share the shards out among
# themselves. Submit it again to go on, with as many workers as you like:
#
#   sbatch --array=0-15 examples/slurm.sh '/data/shards/{00000..00999}.tar' /data/captions
#
# Both may also be on s3:// or gs://.
#SBATCH --job-name=captions
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=16
#SBATCH --mem=64G
#SBATCH --time=24:00:00
#SBATCH --requeue
set -euo pipefail

exec mllama caption "$1" --to "$2" --claim --no-server --model "${MLLAMA_MODEL:-11b}" "${@:3}"
