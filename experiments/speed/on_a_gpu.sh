#!/usr/bin/env bash
# All that is to be known of this code's speed on a GPU, in under eight minutes: checks first, then timings.
#   PYTHON=.venv/bin/python experiments/speed/on_a_gpu.sh FOLDER        results go to FOLDER
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python}
results=${1:?the folder for the results}
mkdir -p "$results"

# Is it right there? The operator against cuDNN and float64, the augmentation against PIL.
"$python" -m pytest tests/test_depthwise.py tests/test_device_augmentation.py | tee "$results/checks.txt"

# Which backend is the fastest for which shape? depthwise.fastest should say the same.
"$python" src/benchmark.py depthwise | tee "$results/depthwise.txt"

# The training step and inference beside the peers: kernels 5 and 9, patches 1 and 2, batches of 512 in bf16.
for kernel in 9 5; do
  for patch in 1 2; do
    timeout 100 "$python" src/benchmark.py model.kernel_size=$kernel model.patch_size=$patch --json \
      > "$results/steps-k$kernel-p$patch.json" || echo "kernel $kernel, patch $patch: not in time"
  done
done

# End to end, with the paper's augmentation on the device: the epochs' images per second, beside the step's above.
"$python" src/train.py experiment=paper_cifar10 data.batch_size=512 data.pipeline=device trainer.precision=bf16 \
  trainer.compile=true trainer.epochs=3 wandb.mode=disabled output_dir="$results" sweep=end_to_end
