#!/usr/bin/env bash
# The loss stage and a whole step on one NVIDIA GPU, beside torchtune, TRL and Liger.
#
#   benchmarks/gpu.sh                  both parts, about 6 minutes on an H100
#   benchmarks/gpu.sh losses           8192 tokens, widths 1024 and 4096, vocabulary 151936, bf16
#   benchmarks/gpu.sh step             Qwen3-8B's shape teaches 9 layers, 4096 tokens a step
#
# Needs a Python with a torch for this GPU. Environment:
#   PYTHON   the interpreter (python3)
#   WHEELS   a folder of wheels that are used beside what is installed, without any index
#            (with torch, transformers, accelerate, pandas, pyarrow and matplotlib there: torchtune,
#            torchdata, torchao 0.15, omegaconf, pydantic, pydantic-core, annotated-types,
#            typing-inspection, datasets, dill, multiprocess, peft 0.18; trl and liger-kernel)
#   INSTALL  1: pip install this project and benchmarks/requirements.txt
#   OUT      where the results go (benchmarks/results)
#   LIMIT    seconds for each part (270)
#   QUICK    1: tiny sizes, on the CPU where there is no GPU, to see it run
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
out=${OUT:-benchmarks/results}
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
export PYTHONPATH="$PWD/src:$PWD/recipes${PYTHONPATH:+:$PYTHONPATH}"

if [[ -n ${WHEELS:-} ]]; then
	site=$(mktemp -d)
	trap 'rm -rf "$site"' EXIT
	"$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir \
		--target "$site" "$WHEELS"/*.whl
	export PYTHONPATH="$PYTHONPATH:$site"
elif [[ ${INSTALL:-0} == 1 ]]; then
	"$python" -m pip install --quiet . -r benchmarks/requirements.txt
fi

failed=0
device=cuda
shapes=qwen3_8b
quick=()
if [[ ${QUICK:-0} == 1 ]]; then
	shapes=tiny
	quick=(--quick)
	"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || device=cpu
fi

part() {
	echo "== $1, at most ${LIMIT:-270} s"
	shift
	timeout --kill-after=10 "${LIMIT:-270}" "$python" "$@" || { failed=$?; echo "ended with $failed"; }
}

losses() {
	part losses benchmarks/losses.py --device cuda --loss ForwardKLLoss --repeats 15 \
		"${quick[@]}" --output "$out"
}
step() {
	part step benchmarks/step.py --device "$device" --shapes "$shapes" --warm-up 2 --steps 7 \
		--timeout 120 --output "$out"
}

[[ $# -gt 0 ]] || set -- losses step
for name in "$@"; do
	case $name in
	losses | step) "$name" ;;
	*)
		echo "error: $name is no part; use losses or step" >&2
		exit 2
		;;
	esac
done
exit "$failed"
