#!/usr/bin/env bash
# Trains on a TPU VM slice, or several, by queued resources: create, setup, run, status, logs, stop, delete. Every verb may be run again.
# `tpu_vm.sh --help` lists the settings; launch/README.md shows a session.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=${HERE%/*}
# shellcheck source=launch/tpu_vm_settings.sh
source "$HERE/tpu_vm_settings.sh"
# shellcheck source=launch/tpu_vm_calls.sh
source "$HERE/tpu_vm_calls.sh"

# The request, unless it is there. One that has ended (preempted, failed) is asked for anew: its nodes are gone.
create() {
  need NAME PROJECT_ID ZONE ACCELERATOR_TYPE RUNTIME_VERSION
  describe
  case $STATE in
    ABSENT) request ;;
    SUSPENDED | FAILED)
      say "$NAME is $STATE: its nodes are gone, so it is deleted and requested anew; then run setup and run again"
      call "$TIMEOUT" gcloud compute tpus queued-resources delete "$NAME" "${WHERE[@]}" --force || tolerate "$NOT_FOUND"
      request
      ;;
    SUSPENDING | DELETING) die 4 "$NAME is $STATE: run create again in a minute" ;;
    *) say "$NAME exists already: $STATE" ;;
  esac
  wait_until_active
}

request() {
  local -a nodes=(--node-id="$NAME") options=()
  if ((SLICES > 1)); then nodes=(--node-count="$SLICES" --node-prefix="$NAME"); fi
  if [[ $SPOT ]]; then options+=(--spot); fi
  if [[ $RESERVED ]]; then options+=(--reserved); fi
  if [[ $NETWORK ]]; then options+=(--network="$NETWORK"); fi
  if [[ $SUBNETWORK ]]; then options+=(--subnetwork="$SUBNETWORK"); fi
  if [[ $SERVICE_ACCOUNT ]]; then options+=(--service-account="$SERVICE_ACCOUNT"); fi
  if [[ $INTERNAL_IPS ]]; then options+=(--internal-ips); fi
  # ALREADY_EXISTS: an earlier attempt arrived, and only its answer did not.
  call "$TIMEOUT" gcloud compute tpus queued-resources create "$NAME" "${WHERE[@]}" --accelerator-type="$ACCELERATOR_TYPE" \
    --runtime-version="$RUNTIME_VERSION" "${nodes[@]}" ${options[@]+"${options[@]}"} || tolerate "$ALREADY_EXISTS"
  report "requested $NAME"
}

wait_until_active() {
  local deadline=$((SECONDS + WAIT))
  if [[ $DRY_RUN ]]; then return; fi
  while ((WAIT > 0)); do
    describe
    case $STATE in
      ACTIVE) break ;;
      ABSENT | SUSPENDED | FAILED) die 4 "$NAME is $STATE; run create again" ;;
    esac
    if ((SECONDS >= deadline)); then die 4 "$NAME is still $STATE after $WAIT s; run create --wait again to go on waiting"; fi
    sleep "$((RETRY_DELAY * 6))"
  done
}

# The committed code as a tar file, and an environment from its setup.py and constraints, on every worker that lacks them.
setup() {
  local release archive
  need NAME PROJECT_ID ZONE
  release=$(release_of_head)
  archive=${XDG_CACHE_HOME:-$HOME/.cache}/xretrieval/xretrieval-$release.tar
  active_nodes
  if [[ $SECRETS ]]; then send_secrets; fi
  on_workers "$TIMEOUT" all "mkdir -p -m 700 .xretrieval .xretrieval/incoming && if [ -e .xretrieval/releases/$release/installed ] \
&& [ \"\$(readlink .xretrieval/current)\" = releases/$release ]; then echo installed; else echo missing; fi"
  if grep -q '^installed$' "$SCRATCH/answers" && ! grep -q '^missing$' "$SCRATCH/answers"; then
    say "release $release is installed on every worker already"
    return
  fi
  report "release $release: sending it"
  pack "$release" "$archive"
  to_workers "$archive" "$HERE/on_worker.sh"
  if [[ $PREPARE ]]; then
    local_command cp -- "$PREPARE" "${archive%/*}/prepare-$release.sh"
    to_workers "${archive%/*}/prepare-$release.sh"
  fi
  on_workers "$INSTALL_TIMEOUT" all "bash .xretrieval/incoming/on_worker.sh install $release $PYTHON"
  local_command rm -f -- "$archive" "${archive%/*}/prepare-$release.sh"
  report "release $release is installed; next: tpu_vm.sh run -- --gin_file=..."
}

# The tree of HEAD, which names the files and nothing else, and the user's preparations.
release_of_head() {
  local release
  release=$(git -C "$HERE" rev-parse --short=12 'HEAD^{tree}' 2> /dev/null) || die 2 "$HERE: not in a git checkout, whose commit would be sent"
  if [[ $(git -C "$HERE" status --porcelain) ]]; then say "changes that are not committed, and files that git does not know, are not sent"; fi
  if [[ $PREPARE ]]; then release=$release-$(sha256sum < "$PREPARE" | cut -c 1-8); fi
  echo "$release-py$PYTHON"
}

# Of the repository's root, whatever folder this runs in.
pack() {
  local release=$1 archive=$2
  local_command mkdir -p -m 700 -- "${archive%/*}"
  if [[ -e $archive ]]; then return; fi
  local_command git -C "$ROOT" archive --format=tar --output="$archive.part" HEAD
  local_command mv -- "$archive.part" "$archive"
}

send_secrets() {
  local_command install -m 600 -- "$SECRETS" "$SCRATCH/secrets.env"
  on_workers "$TIMEOUT" all "mkdir -p -m 700 .xretrieval .xretrieval/incoming"
  to_workers "$SCRATCH/secrets.env" "$HERE/on_worker.sh"
  on_workers "$TIMEOUT" all "bash .xretrieval/incoming/on_worker.sh keep_secrets"
}

# `xretrieval train` on every worker, under a supervisor that outlives the connection.
run() {
  need NAME PROJECT_ID ZONE
  if ((${#TRAIN_ARGUMENTS[@]} == 0)); then die 2 "run: no arguments for \`xretrieval train\`; give them after --, as: run -- --gin_file=RUN.gin"; fi
  active_nodes
  # A TPU that does not start is an error then, not a run on the CPU.
  on_workers "$TIMEOUT" all "$(worker start "$RESTART_ON" "$MAX_RESTARTS" "$RESTART_DELAY" JAX_PLATFORMS=tpu,cpu \
    ${ENVIRONMENT[@]+"${ENVIRONMENT[@]}"} -- "${TRAIN_ARGUMENTS[@]}")"
  report "next: tpu_vm.sh status, tpu_vm.sh logs"
}

# What the current release's on_worker.sh is to do, as a command line for the shell there.
worker() {
  local script=.xretrieval/current/code/launch/on_worker.sh
  printf 'if [ -e %s ]; then exec bash %s %s; else echo nothing is installed: run setup first >&2; exit 1; fi' "$script" "$script" "$(quote "$@")"
}

status() {
  need NAME PROJECT_ID ZONE
  describe
  if [[ ! $DRY_RUN ]]; then echo "$NAME: $STATE"; fi
  case $STATE in
    ACTIVE) ;;
    ABSENT | SUSPENDED | FAILED) die 4 "run create, then setup and run: training goes on from its last checkpoint" ;;
    *) return ;;
  esac
  on_workers "$TIMEOUT" all "$(worker status)"
  cat "$SCRATCH/answers"
  remote "${NODES[0]}" "$TIMEOUT" 0 "$(worker metrics)"
}

# Of one worker, or of all; until it is interrupted, unless --no-follow.
logs() {
  local node command jobs=()
  need NAME PROJECT_ID ZONE
  active_nodes
  command=$(worker logs "$LINES_SHOWN" "${FOLLOW:+-F}")
  if [[ $WORKER != all ]]; then
    ((SLICE < ${#NODES[@]})) || die 2 "--slice $SLICE: $NAME has ${#NODES[@]}, counted from 0"
    NODES=("${NODES[SLICE]}")
  fi
  for node in "${NODES[@]}"; do
    if [[ $FOLLOW && ! $DRY_RUN ]]; then
      gcloud compute tpus tpu-vm ssh "$node" "${WHERE[@]}" ${SSH[@]+"${SSH[@]}"} --worker="$WORKER" --command="$command" < /dev/null &
      jobs+=($!)
    else
      remote "$node" "$TIMEOUT" "$WORKER" "$command"
    fi
  done
  if ((${#jobs[@]})); then wait "${jobs[@]}" || die 3 "gcloud compute tpus tpu-vm ssh ${NODES[*]}: the connection ended"; fi
}

stop() {
  need NAME PROJECT_ID ZONE
  active_nodes
  on_workers "$((STOP_TIMEOUT + TIMEOUT))" all "$(worker stop "$STOP_TIMEOUT")"
}

delete() {
  local answer
  need NAME PROJECT_ID ZONE
  if [[ ! $YES && ! $DRY_RUN ]]; then
    [[ -t 0 ]] || die 2 "delete: nobody to ask; give --yes"
    read -r -p "Delete $NAME in $PROJECT_ID, $ZONE, with its VMs and all that is on their disks? [y/N] " answer
    if [[ $answer != [yY]* ]]; then die 2 "delete: nothing was deleted"; fi
  fi
  call "$TIMEOUT" gcloud compute tpus queued-resources delete "$NAME" "${WHERE[@]}" --force || tolerate "$NOT_FOUND"
  report "$NAME is deleted, or was not there"
}

read_settings "$@"
"$VERB"
