# shellcheck shell=bash disable=SC2034 # read by the script that sources this one
# How tpu_vm.sh calls gcloud: in time, again where the failure may pass, on every slice at once. Sourced.
# `tpu-vm ssh` slice by slice, and not `queued-resources ssh --node=all`: that one leaves out a slice that it cannot reach, and
# succeeds (gcloud 528).

SCRATCH=$(mktemp -d)
# Connections that are still open (logs) end with the script.
# shellcheck disable=SC2046 # process IDs
trap 'kill $(jobs -p) 2> /dev/null || true; rm -rf -- "$SCRATCH"' EXIT

NOT_FOUND='NOT_FOUND|not found|notFound'
ALREADY_EXISTS='ALREADY_EXISTS|already exists|alreadyExists'
# What may be otherwise a moment later. 255 is ssh's own exit code, 124 and 137 are those of `timeout`.
TRANSIENT='UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|INTERNAL|rateLimitExceeded|HTTPError (429|5[0-9][0-9])|[Cc]onnection (reset|refused|timed out|aborted)'
TRANSIENT+='|[Tt]imed out|[Tt]emporar(y|ily)|resolve host|network is unreachable|Max retries exceeded|Broken pipe'

say() { printf 'tpu_vm.sh: %s\n' "$*" >&2; }

# What was done: nothing, in a dry run.
report() { if [[ ! $DRY_RUN ]]; then say "$@"; fi; }

# die CODE MESSAGE: 2 a setting is missing or wrong, 3 a call of gcloud failed, 4 not in the state of the request.
die() {
  printf 'tpu_vm.sh: %s\n' "${*:2}" >&2
  exit "$1"
}

# Each argument as any POSIX shell reads it back: as it is where nothing in it is special, else in single quotes.
quote() {
  local argument separator='' apostrophe="'\\''"
  for argument in "$@"; do
    if [[ ! $argument =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]]; then argument="'${argument//\'/"$apostrophe"}'"; fi
    printf '%s%s' "$separator" "$argument"
    separator=' '
  done
}

# A command on this machine; with --dry-run its text.
local_command() {
  if [[ $DRY_RUN ]]; then
    quote "$@"
    echo
  else
    "$@"
  fi
}

# call SECONDS COMMAND ...: at most ATTEMPTS times, where the failure may pass. Its stdout is passed on. After a failure, $CALL names
# it, $CODE is its exit code and the file $ERRORS what it said.
call() {
  local seconds=$1 attempt pause
  shift
  if [[ $DRY_RUN ]]; then
    local_command "$@"
    return
  fi
  # The verbs and the name; not the flags, which may be long.
  CALL="${*:1:6}" ERRORS=$(mktemp -p "$SCRATCH")
  for ((attempt = 1; ; attempt++)); do
    CODE=0
    # Its stderr is shown at once and kept; its stdout goes its own way.
    { timeout --kill-after=10 "$seconds" "$@" < /dev/null 2>&1 >&3 3>&- | tee "$ERRORS" >&2 3>&- || CODE=${PIPESTATUS[0]}; } 3>&1
    if ((CODE == 0)); then return 0; fi
    if ((CODE == 124 || CODE == 137)); then echo "no answer in $seconds s" | tee -a "$ERRORS" >&2; fi
    if ((attempt >= ATTEMPTS)) || { ((CODE != 124 && CODE != 137 && CODE != 255)) && ! grep -qE "$TRANSIENT" "$ERRORS"; }; then return 1; fi
    # Doubled each time, with a jitter: many launchers that failed together do not come back together.
    pause=$((RETRY_DELAY << (attempt - 1)))
    pause=$((pause + RANDOM % (pause + 1)))
    say "$CALL: exit code $CODE, attempt $attempt of $ATTEMPTS; again in $pause s"
    sleep "$pause"
  done
}

# After `call ... ||`: fine where its message is of this pattern.
tolerate() {
  grep -qE "$1" "$ERRORS" || give_up
}

give_up() { die 3 "failed with exit code $CODE: $CALL"; }

# STATE of the request (ABSENT without one) and NODES, its slices. A dry run takes it for what the verb hopes for.
describe() {
  local answer
  if [[ $DRY_RUN ]]; then
    call "$TIMEOUT" gcloud compute tpus queued-resources describe "$NAME" "${WHERE[@]}" --format="$STATE_AND_NODES"
    if [[ $VERB == create ]]; then STATE=ABSENT; else STATE=ACTIVE; fi
    NODES=("$NAME")
    if ((SLICES > 1)); then mapfile -t NODES < <(seq -f "$NAME-%g" 0 $((SLICES - 1))); fi
    return
  fi
  if call "$TIMEOUT" gcloud compute tpus queued-resources describe "$NAME" "${WHERE[@]}" --format="$STATE_AND_NODES" > "$SCRATCH/described"; then
    answer=$(< "$SCRATCH/described")
    STATE=${answer%%$'\t'*}
    IFS=';' read -r -a NODES <<< "${answer#*$'\t'}"
  else
    tolerate "$NOT_FOUND"
    STATE=ABSENT NODES=()
  fi
}

active_nodes() {
  describe
  case $STATE in
    ACTIVE) ;;
    ABSENT) die 4 "$NAME is not there; run create first" ;;
    SUSPENDED | FAILED) die 4 "$NAME is $STATE: run create again, then setup and run; training goes on from its last checkpoint" ;;
    *) die 4 "$NAME is $STATE, not ACTIVE yet; see status, or create --wait" ;;
  esac
  if ((${#NODES[@]} == 0)); then die 4 "$NAME is ACTIVE, but gcloud names no node of it"; fi
}

# remote NODE SECONDS WORKER COMMAND
remote() {
  call "$2" gcloud compute tpus tpu-vm ssh "$1" "${WHERE[@]}" ${SSH[@]+"${SSH[@]}"} --worker="$3" --command="$4" || give_up
}

# copy NODE FILE ...
copy() {
  call "$TIMEOUT" gcloud compute tpus tpu-vm scp "${@:2}" "$1:.xretrieval/incoming/" "${WHERE[@]}" ${SSH[@]+"${SSH[@]}"} --worker=all --compress || give_up
}

# on_workers SECONDS WORKER COMMAND: on these workers of every slice; what they say is in the file answers, slice by slice.
on_workers() { on_slices remote "$@"; }

# to_workers FILE ...: into the incoming folder of every worker of every slice.
to_workers() { on_slices copy "$@"; }

# on_slices FUNCTION ARGUMENT ...: FUNCTION NODE ARGUMENT ... for every slice, all at once; fails naming the slices where it failed.
on_slices() {
  local node i jobs=() failed=()
  : > "$SCRATCH/answers"
  for node in "${NODES[@]}"; do
    if [[ $DRY_RUN ]]; then
      "$1" "$node" "${@:2}"
    else
      "$1" "$node" "${@:2}" > "$SCRATCH/$node.answer" &
      jobs+=($!)
    fi
  done
  for i in "${!jobs[@]}"; do
    wait "${jobs[i]}" || failed+=("${NODES[i]}")
    cat "$SCRATCH/${NODES[i]}.answer" >> "$SCRATCH/answers"
  done
  if ((${#failed[@]})); then die 3 "failed on ${failed[*]} (see above); the same command goes on from there"; fi
}
