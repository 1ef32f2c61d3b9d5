#!/usr/bin/env bash
# Rewrites envs/requirements*.lock from the .in files. Needs uv. Run it after changing a pin, then read the diff.
# torch and what only its CUDA build needs are left out, so that one lock serves CPU and GPU machines.
set -euo pipefail
cd "$(dirname "$0")"
skip=(torch triton)
for p in bindings pathfinder toolkit; do skip+=("cuda-$p"); done
for p in cublas cuda-cupti cuda-nvrtc cuda-runtime cudnn-cu13 cufft cufile curand cusolver cusparse \
	cusparselt-cu13 nccl-cu13 nvjitlink nvshmem-cu13 nvtx; do skip+=("nvidia-$p"); done
for name in requirements requirements-dev; do
	uv pip compile "$name.in" -o "$name.lock" --quiet --universal --python-version 3.11 \
		--generate-hashes --no-emit-find-links --custom-compile-command envs/lock.sh \
		"${skip[@]/#/--no-emit-package=}" "$@"
done
uv pip compile requirements-slurm.in -o requirements-slurm.lock --quiet --universal --python-version 3.11 --no-deps \
	--generate-hashes --no-emit-find-links --custom-compile-command envs/lock.sh "$@"
