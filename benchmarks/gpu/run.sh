#!/usr/bin/env bash
# One run of at most nine minutes on a machine with an NVIDIA GPU; benchmarks/gpu/README.md says what it needs.
#
#   bash benchmarks/gpu/run.sh PIECES OUT
#
# TENSORRT_PYTHON: a Python with tensorrt and numpy (default: python3); RTX_PYTHON: one with tensorrt_rtx and numpy
# (default: python3). Everything lies in OUT: table.md, rows.jsonl, times*.json, *.layers.json, *.log and the engines.
set -uo pipefail
[[ -d ${1:-}/models && -n ${2:-} ]] || { sed -n '2,7p' "$0"; exit 2; }
pieces=$1 out=$2 here=$(dirname "${BASH_SOURCE[0]}")
trt=${TENSORRT_PYTHON:-python3} rtx=${RTX_PYTHON:-python3}
seconds=${SECONDS_IN_ALL:-540}
mkdir -p "$out"
rm -f "$out"/rows.jsonl "$out"/times*.json "$out"/*.engine "$out"/table.md
start=$(date +%s)
left() { echo $((start + seconds - $(date +%s) - 10)); }  # ten for the table

{
  nvidia-smi || echo "no nvidia-smi"
  "$trt" -c 'import tensorrt as t, numpy; print("tensorrt", t.__version__, "numpy", numpy.__version__)'
  "$rtx" -c 'import tensorrt_rtx as t; print("tensorrt_rtx", t.__version__)'
} >"$out/machine.log" 2>&1
cat "$out/machine.log"

# A process for each model: what ends one of them costs the others nothing. A minute is kept for the timing.
part() { # NAME SECONDS COMMAND...
  local name=$1 most=$2; shift 2
  (( most > 5 )) || { echo "$name: no time left" | tee -a "$out/run.log"; return; }
  timeout -k 5 "$most" "$@" >"$out/$name.log" 2>&1
  local code=$?
  (( code == 0 )) || echo "$name: status $code: $(tail -n 1 "$out/$name.log")" | tee -a "$out/run.log"
}
build_all() { # PREFIX KEPT PYTHON OPTIONS...: no model takes the time of those behind it
  local prefix=$1 kept=$2 python=$3 models model n until; shift 3
  models=$(ls "$pieces/models"); n=$(wc -w <<<"$models")
  for model in $models; do
    until=$(($(date +%s) + ($(left) - kept) / n)); n=$((n - 1))
    part "$prefix.$model" $(($(left) - kept)) "$python" "$here/measure.py" build "$pieces" "$out" "$model" --until "$until" "$@"
  done
}
build_all build 90 "$trt"
part time $(($(left) / 2)) "$trt" "$here/measure.py" time "$pieces" "$out"
if "$rtx" -c 'import tensorrt_rtx' 2>/dev/null; then
  build_all rtx 20 "$rtx" --rtx
  part rtx.time $(left) "$rtx" "$here/measure.py" time "$pieces" "$out" --rtx
else
  echo "tensorrt_rtx: not importable by $rtx" | tee -a "$out/run.log"
fi
"$trt" "$here/measure.py" table "$out"
echo "$(($(date +%s) - start)) s" | tee -a "$out/run.log"
grep -q '"top1"' "$out/rows.jsonl"  # status 1: no engine ran
