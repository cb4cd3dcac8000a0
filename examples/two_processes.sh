#!/usr/bin/env bash
# Trains the quickstart's model in two processes of this machine, each with half of every batch:
#   bash examples/two_processes.sh --set train_steps=100
set -euo pipefail
run=(python3 main.py --model quickstart --hosts localhost:2222,localhost:2223
     --set mesh_shape=x:2 --set layout=batch:x --set model_path=runs/two_processes "$@")

"${run[@]}" --host_index 1 & other=$!
trap 'kill "$other" 2>/dev/null || true' EXIT  # if this shell is stopped, so is the second process
"${run[@]}" --host_index 0
trap - EXIT
wait "$other"
