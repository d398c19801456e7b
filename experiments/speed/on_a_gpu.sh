#!/usr/bin/env bash
# Measure this code on a GPU, in parts of less than four minutes. A part that needs more time ends with exit code 3 and
# goes on when it is called again. Results are kept in FOLDER.
#   PYTHON=.venv/bin/python experiments/speed/on_a_gpu.sh FOLDER first
#     first     the machine, tests of Triton's kernels, a layer with each backend, kernels 9 and 5
#     check     all tests that need a GPU
#     choose    a layer with each backend, and what `auto` takes: for the default shapes, then for the runs of `train`
#     steps     training and inference compared with the authors' form and timm's, kernels 9 and 5, patches 1 and 2
#     train     short_cifar10 over three seeds, then paper_cifar10; e.g. data=image_folder data.root=DIR
#     report    all of it as Markdown
# Further arguments are overrides of the part's configs. LIMIT=60 ends a part after a minute.
set -uo pipefail
folder=$(realpath -m "${1:?the folder for the results}") part=${2:?first, check, choose, steps, train or report}
shift 2
mkdir -p "$folder"
cd "$(dirname "$0")/../.."
python=${PYTHON:-python} limit=${LIMIT:-220}

in_time() { # run a command for what is left of the time
  local left=$((limit - SECONDS)) code=0
  [ "$left" -gt 0 ] || return 3
  timeout --signal=INT --kill-after=15 "$left" "$@" || code=$?
  [ "$code" -eq 124 ] || [ "$SECONDS" -ge "$limit" ] && return 3
  return "$code"
}

case $part in
first) # four minutes on a machine that nothing has run on yet
  paper="model=convmixer_256_8 data=cifar10 data.batch_size=512 trainer.precision=bf16"
  in_time "$python" src/benchmark.py doctor | tee "$folder/doctor.txt"
  in_time "$python" -m pytest -m gpu -n 8 -q --color=no tests/test_kernels.py -k "bfloat16 or float32" | tee "$folder/first.txt"
  # shellcheck disable=SC2086 # several arguments
  in_time "$python" src/benchmark.py depthwise $paper model.kernel_size=9,5 model.patch_size=1,2 "$@" --results "$folder/results.jsonl"
  code=$?
  ;;
check) # is it right there? Tests that have passed are not run again.
  mapfile -t passed < <(sed -n 's/^\(tests.*\) PASSED .*/--deselect=\1/p' "$folder/check.txt" 2>/dev/null)
  in_time "$python" -m pytest -m gpu -vv --color=no "${passed[@]}" | tee -a "$folder/check.txt"
  code=${PIPESTATUS[0]}
  [ "$code" -ne 5 ] || code=0 # no test is left
  ;;
choose)
  in_time "$python" src/benchmark.py depthwise --results "$folder/results.jsonl" &&
    in_time "$python" src/benchmark.py depthwise experiment=short_cifar10,paper_cifar10 "$@" --results "$folder/results.jsonl"
  code=$?
  ;;
steps) # what compiles soonest first
  in_time "$python" src/benchmark.py model.kernel_size=9,5 model.patch_size=1,2 "$@" --results "$folder/results.jsonl" \
    --only '*eager*' --only '*compiled' --only '*compiled, *' --only '*reduce*' --only '*'
  code=$?
  ;;
train)
  code=0
  for recipe in "short_cifar10 seed=0,1,2" "paper_cifar10 seed=0"; do
    [ "$code" -eq 0 ] || break
    # shellcheck disable=SC2086 # two arguments
    in_time "$python" src/train.py -m experiment=$recipe sweep="${recipe%% *}" output_dir="$folder" wandb.mode=disabled "$@"
    code=$?
  done
  ;;
report)
  grep -hE '^=+ .*(passed|failed|skipped).* =+$' "$folder/check.txt" 2>/dev/null
  if [ -e "$folder/results.jsonl" ]; then "$python" src/benchmark.py report "$folder/results.jsonl"; fi
  cat "$folder"/*/comparison.md 2>/dev/null
  code=0
  ;;
*)
  echo "$part: there is no such part; expected first, check, choose, steps, train or report" >&2
  code=1
  ;;
esac
[ "$code" -ne 3 ] || echo "$part: out of time; the same command goes on" >&2
exit "$code"
