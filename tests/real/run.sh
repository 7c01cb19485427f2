#!/usr/bin/env bash
# Every task once on real weights: tests/real/run.sh MODELS GPUS [OUT]; tests/real/run.sh --dry-run checks the commands.
#
# MODELS has the releases under their own names (Wan2.2-T2V-A14B, ...), and driving.mp4 for Wan-Animate; what is not there
# is left out. With more than one GPU each task runs on one of them and then on all. Videos, logs and summary.md go to OUT
# (default: outputs/real). Exit status 1 when a run has failed, 2 when none was possible. LAUNCH (default: uv run)
# starts the programs.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
read -ra launch <<<"${LAUNCH-uv run}"

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
rows=() failed=0 made=0
while IFS=$'\t' read -r name needs words; do
  missing=
  IFS=, read -ra paths <<<"$needs"
  for path in "${paths[@]}"; do [ -e "$models/$path" ] || missing="$missing $path"; done
  if [ -n "$missing" ]; then
    rows+=("| $name | left out | | there is no$missing |")
    continue
  fi
  echo "== $name"
  start=$SECONDS
  eval "set -- $words"
  "${launch[@]}" "$@" >"$out/$name.log" 2>&1 </dev/null
  status=$?
  video=$out/$name.mp4
  if [ $status -eq 0 ] && [ "$name" != prepare-animate ] && [ ! -s "$video" ]; then status="0, but no $video"; fi
  if [ "$status" = 0 ]; then
    made=$((made + 1))
    rows+=("| $name | ok | $((SECONDS - start)) s | |")
  else
    failed=$((failed + 1))
    rows+=("| $name | FAILED | $((SECONDS - start)) s | exit status $status: $(tail -n 1 "$out/$name.log" | tr '|' '/') |")
  fi
done <<<"$commands"

{ echo "| run | result | time | |"; echo "|---|---|---|---|"; printf '%s\n' "${rows[@]}"; } | tee "$out/summary.md"
[ $failed -eq 0 ] || exit 1
[ $made -gt 0 ] || { echo "run.sh: nothing in $models could be run" >&2; exit 2; }
