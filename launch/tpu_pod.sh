#!/bin/bash
# A sweep on a TPU pod slice, one process a host. Run on your machine, with gcloud set up:
#
#   launch/tpu_pod.sh NAME ZONE HOSTS MANIFEST --out gs://BUCKET/DIR [options of `jax3d sweep`]
#
# The hosts have jax3d installed (launch/README.md) and can read MANIFEST, best a gs:// URL too.
# Each host is told that it is alone: libtpu would make one JAX of the slice, but assets do not
# communicate, and a host that fails would take the others down. CHIPS tells how a host's chips are
# laid out: 2,2,1 for the four of v4, v5p and v6e hosts (2,4,1 for hosts of eight).
set -euo pipefail

if [[ $# -lt 4 ]]; then
  echo "usage: $0 NAME ZONE HOSTS MANIFEST --out gs://BUCKET/DIR [options]" >&2
  exit 2
fi
name=$1 zone=$2 hosts=$3
shift 3

chips=${CHIPS:-2,2,1}
IFS=, read -r x y z <<<"$chips"
visible=$(seq -s, 0 $((x * y * z - 1)))
metadata=http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number
options=$(printf '%q ' "$@")

gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="
  export TPU_CHIPS_PER_PROCESS_BOUNDS=$chips TPU_PROCESS_BOUNDS=1,1,1 TPU_VISIBLE_DEVICES=$visible
  export JAX_COMPILATION_CACHE_DIR=\$HOME/.cache/jax3d
  process=\$(curl -sf -H 'Metadata-Flavor: Google' $metadata)
  exec ${JAX3D:-jax3d} sweep $options --processes $hosts --process \$process"
