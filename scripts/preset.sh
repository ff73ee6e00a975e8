#!/usr/bin/env bash
# Copy a preset over params.yaml, unless edits there would be lost. Where it is there already, nothing is done: after a kill
# the same `make repro PRESET=…` goes on.
#
#   scripts/preset.sh presets/<name>.yaml        FORCE=1 copies in any case
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

preset=${1:?usage: scripts/preset.sh presets/<name>.yaml}
fail() {
  printf 'preset: %s\n' "$1" >&2
  exit 2
}

# Contents that can be had again: committed ones, and those of another preset.
is_kept_elsewhere() {
  local other
  [ -f params.yaml ] || return 0
  for other in presets/*.yaml; do
    if cmp -s "$other" params.yaml; then return 0; fi
  done
  git show HEAD:./params.yaml 2>/dev/null | cmp -s - params.yaml
}

[ -f "$preset" ] || fail "$preset: not found; there are: $(printf '%s ' presets/*.yaml)"
if cmp -s "$preset" params.yaml; then
  printf 'preset: params.yaml already is %s\n' "$preset"
  exit 0
fi
if [ "${FORCE:-}" != 1 ] && ! is_kept_elsewhere; then
  fail "params.yaml has edits that are not committed and would be lost; commit them, or add FORCE=1"
fi
cp -- "$preset" params.yaml.partial # and then in one move: a killed run leaves the old file or the new one, whole
mv -f -- params.yaml.partial params.yaml
printf 'preset: copied %s over params.yaml\n' "$preset"
