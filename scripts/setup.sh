#!/usr/bin/env bash
# Make .venv from the lock file, once: picks cpu or gpu, installs, and does nothing when all is as it was.
#
#   scripts/setup.sh
#
# ANAMNESIS_EXTRA=cpu|gpu overrides the choice; PYTHON=/path/to/python3.11 the interpreter. Writes inside .venv only
# (and pip's cache). Exit codes: 0 ready, 2 a wrong setting, 3 no Python or no torch to be had, 1 pip failed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

stamp_file=.venv/anamnesis.stamp
mark=.venv/anamnesis.incomplete # there while .venv is being changed: a killed run leaves it behind
log=.venv/setup.log

say() { printf 'setup: %s\n' "$*"; }
fail() {
  printf 'setup: %s\n' "$2" >&2
  exit "$1"
}

choose_extra() {
  case "${ANAMNESIS_EXTRA:-}" in
    cpu | gpu) printf '%s' "$ANAMNESIS_EXTRA" ;;
    "")
      # nvidia-smi may be installed without a driver or a card: only its word that there is one counts.
      if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q '^GPU '; then
        printf gpu
      else
        printf cpu
      fi
      ;;
    *) fail 2 "ANAMNESIS_EXTRA is '$ANAMNESIS_EXTRA'; it can be cpu or gpu" ;;
  esac
}

find_python() {
  local candidate found
  # 3.11 first: the locks were made for it. An active venv, ours included, stands for the interpreter it was made from.
  for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3 python; do
    if found=$("$candidate" -c '
import sys, ensurepip, venv
sys.exit(1) if not (3, 11) <= sys.version_info[:2] < (3, 13) else print(sys._base_executable)' 2>/dev/null); then
      printf '%s' "$found"
      return
    fi
  done
  fail 3 "no Python 3.11 or 3.12 with venv found; install one (Debian: python3.11-venv) or set PYTHON=/path/to/python3.11"
}

# The state that .venv must be in: what is installed, and where it stands (its scripts carry absolute paths).
wanted_stamp() {
  { printf '%s\n' "$extra" "$PWD"; cat "locks/$extra.txt" pyproject.toml; } | sha256sum | cut -d' ' -f1
}

# Run pip with its words in the log; count packages on the terminal meanwhile.
pip_install() {
  local pid seen
  .venv/bin/python -m pip --disable-pip-version-check --no-input install --no-deps --no-compile "$@" >>"$log" 2>&1 &
  pid=$!
  # shellcheck disable=SC2064 # the pid of now
  trap "kill $pid 2>/dev/null || true" EXIT
  local waited=0
  while kill -0 "$pid" 2>/dev/null; do
    sleep 1
    waited=$((waited + 1))
    if [ $((waited % 20)) -eq 0 ]; then
      seen=$(grep -c -E '^(Collecting|Requirement already)' "$log" || true)
      if grep -q '^Installing collected' "$log"; then say "  unpacking them"; else say "  $seen of $count"; fi
    fi
  done
  trap - EXIT
  if ! wait "$pid"; then
    printf 'setup: pip failed; the last lines of %s:\n' "$log" >&2
    grep -v '^WARNING: Location' "$log" | tail -n 20 >&2
    exit 1
  fi
}

# On a CPU machine the one wheel that PyPI lacks is fetched first: without it the other gigabytes would be in vain.
fetch_torch() {
  local torch
  torch=$(grep '^torch==' "locks/$extra.txt")
  mkdir -p .venv/wheels
  if ! .venv/bin/python -m pip --disable-pip-version-check --no-input download --quiet --no-deps --dest .venv/wheels \
    "$torch" >>"$log" 2>&1; then
    fail 3 "pip finds no $torch; add PyTorch's CPU wheel index: PIP_EXTRA_INDEX_URL=<its address, shown by the install\
 page of pytorch.org for Linux, Pip, CPU> and run again (pip's words: $log)"
  fi
}

[ "$(uname -s)" = Linux ] || fail 3 "vLLM's wheels are for Linux; on this system use a container or a Linux machine"
extra=$(choose_extra)
[ -f "locks/$extra.txt" ] || fail 2 "locks/$extra.txt is missing; this folder is not a whole copy of the project"
stamp=$(wanted_stamp)

if [ "${1:-}" = --print ]; then # for the curious and for tests: the decision, without acting on it
  printf '%s %s\n' "$extra" "$stamp"
  exit 0
fi
if [ ! -e "$mark" ] && [ "$(cat "$stamp_file" 2>/dev/null)" = "$stamp" ] && .venv/bin/python -c '' 2>/dev/null; then
  exit 0
fi

python=$(find_python)
if [ -e "$mark" ] || { [ -e .venv ] && ! .venv/bin/python -c 'import pip' 2>/dev/null; }; then
  say "an earlier run was cut off; starting .venv anew"
  rm -rf .venv
fi
if [ "$(cat .venv/anamnesis.extra 2>/dev/null || printf '%s' "$extra")" != "$extra" ]; then
  say ".venv was made for another kind of machine; starting it anew"
  rm -rf .venv
fi
mkdir -p .venv
: >"$mark"
rm -f "$stamp_file"
: >"$log"
count=$(grep -c '==' "locks/$extra.txt")
say "extra $extra, $("$python" --version 2>&1); log in $log"
[ -x .venv/bin/python ] || "$python" -m venv .venv
if [ "$extra" = cpu ]; then
  say "1/4 torch for CPU"
  fetch_torch
  say "2/4 $count packages, exact versions of locks/$extra.txt (some 4 GB on disk, a few minutes)"
  pip_install --find-links .venv/wheels -r "locks/$extra.txt"
  rm -rf .venv/wheels
else
  say "1/4 torch comes with the others"
  say "2/4 $count packages, exact versions of locks/$extra.txt (over 10 GB on disk, several minutes)"
  pip_install -r "locks/$extra.txt"
fi
say "3/4 anamnesis itself, editable"
pip_install --no-build-isolation --editable .
# Once, on all cores. Left to the first import, it would be done anew by every process wherever
# PYTHONDONTWRITEBYTECODE is set, as in many containers: a server then takes twice as long to start.
say "4/4 compiling to bytecode, and a first import"
.venv/bin/python -m compileall -q -j 0 .venv/lib >>"$log" 2>&1 || true # some packages ship files for other Pythons
if ! .venv/bin/python -c 'import torch, transformers.models.llama.modeling_llama, dvc' >>"$log" 2>&1; then
  tail -n 5 "$log" >&2
  fail 1 "what was installed can't be imported; if .venv held other packages before, remove it and run again"
fi
printf '%s' "$extra" >.venv/anamnesis.extra
printf '%s' "$stamp" >"$stamp_file"
rm -f "$mark"
say "ready: source .venv/bin/activate"
