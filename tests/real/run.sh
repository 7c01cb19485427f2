#!/usr/bin/env bash
# Every task once on real weights: tests/real/run.sh MODELS GPUS [OUT]; tests/real/run.sh --dry-run checks the commands.
#
# MODELS has the releases under their own names (Wan2.2-T2V-A14B, ...), and driving.mp4 for Wan-Animate; what is not there
# is left out. With more than one GPU each task runs on one of them and then on all. Videos, logs and summary.md go to OUT
# (default: outputs/real); the summary is written anew after every run. A run that fails, leaves no video that can be seen,
# or takes longer than LIMIT (default: 4h) does not keep the others from being made. Started again, it leaves out what
# was made by the same command before (OUT/NAME.done; remove that file to make it again). Exit status 1 when a run has
# failed, 2 when none was possible, 130 after Ctrl-C. ONLY (by commas) names the runs to make; LAUNCH (default: uv run)
# starts the programs.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
read -ra launch <<<"${LAUNCH-uv run}"
only=${ONLY-} limit=${LIMIT-4h}

usage() { echo "usage: run.sh MODELS GPUS [OUT], or run.sh --dry-run [GPUS]" >&2; exit 2; }

if [ "${1-}" = "--dry-run" ]; then
  exec "${launch[@]}" python "$here/commands.py" --check "${2-8}"
fi
[ $# -ge 2 ] && [ $# -le 3 ] || usage
models=$1 gpus=$2 out=${3-outputs/real}
[ -d "$models" ] || { echo "run.sh: there is no folder $models" >&2; exit 2; }
case $gpus in '' | *[!0-9]* | 0) echo "run.sh: GPUS is a number from 1 on, got $gpus" >&2; exit 2 ;; esac
mkdir -p "$out" || exit 2

commands=$("${launch[@]}" python "$here/commands.py" "$models" "$gpus" "$out") || exit 2
for name in ${only//,/ }; do
  cut -f 1 <<<"$commands" | grep -qxF -- "$name" || { echo "run.sh: there is no run $name" >&2; exit 2; }
done
within=()
if command -v timeout >/dev/null; then within=(timeout --foreground -k 60 "$limit"); fi
rows=() failed=0 made=0

note() {  # a row of the summary, which is there whatever happens next
  rows+=("| $1 | $2 | $3 | $4 |")
  { echo "| run | result | time | |"; echo "|---|---|---|---|"; printf '%s\n' "${rows[@]}"; } >"$out/summary.part"
  mv "$out/summary.part" "$out/summary.md"
}
stopped() { note "$name" "stopped" "$((SECONDS - start)) s" ""; cat "$out/summary.md"; exit 130; }

while IFS=$'\t' read -r name needs words; do
  case ",${only:-$name}," in *",$name,"*) ;; *) continue ;; esac
  missing=
  IFS=, read -ra paths <<<"$needs"
  for path in "${paths[@]}"; do [ -e "$models/$path" ] || missing="$missing $path"; done
  if [ -n "$missing" ]; then
    note "$name" "left out" "" "there is no$missing"
    continue
  fi
  if [ -f "$out/$name.done" ] && [ "$(head -n 1 "$out/$name.done")" = "$words" ]; then
    made=$((made + 1))
    note "$name" "ok" "" "made before: $(tail -n 1 "$out/$name.done")"
    continue
  fi
  echo "== $name"
  start=$SECONDS
  rm -f "$out/$name.done"
  eval "set -- $words"
  trap stopped INT TERM
  "${within[@]}" "${launch[@]}" "$@" >"$out/$name.log" 2>&1 </dev/null
  status=$?
  taken="$((SECONDS - start)) s"
  trap - INT TERM
  seen=
  if [ $status -eq 124 ] || [ $status -eq 137 ]; then
    problem="took longer than $limit, or was killed"
  elif [ $status -ne 0 ]; then
    problem="exit status $status: $(tail -n 1 "$out/$name.log" | tr '|' '/')"
  elif [[ $words != *"--output "* ]] || seen=$("${launch[@]}" python "$here/commands.py" --look "$out/$name.mp4" 2>&1); then
    problem=
  else
    problem="no video: $(tail -n 1 <<<"$seen" | tr '|' '/')"
  fi
  if [ -z "$problem" ]; then
    made=$((made + 1))
    printf '%s\n%s\n' "$words" "$taken, $seen" >"$out/$name.done"
    note "$name" "ok" "$taken" "$seen"
  else
    failed=$((failed + 1))
    note "$name" "FAILED" "$taken" "$problem; see $name.log"
  fi
  echo "${rows[-1]}"
done <<<"$commands"

[ ${#rows[@]} -gt 0 ] && cat "$out/summary.md"
[ $failed -eq 0 ] || exit 1
[ $made -gt 0 ] || { echo "run.sh: nothing in $models could be run" >&2; exit 2; }
