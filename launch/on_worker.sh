#!/usr/bin/env bash
# What tpu_vm.sh runs on each TPU VM. Every verb may be run again; all that it keeps is in ~/.xretrieval:
#
#     incoming/       what was sent
#     releases/ID/    code/, its environment venv/, prepare.sh, and `installed` once all of it is there
#     current         the release that the next run takes
#     run/            lock, arguments, train.log, exit_code, ... of the run
#     work/           where the run is started
#     secrets.env     what the run's environment gets and no command line ever holds
#
# A run is under way exactly as long as somebody holds run/lock: the supervisor and the training process both do, so neither a
# stale process ID nor a killed supervisor lets a second run start beside the first.
set -euo pipefail
umask 077

BASE=$HOME/.xretrieval
RUN=$BASE/run
HOST=${HOSTNAME:-$(hostname)}
# The version that was tried; pip takes it from the index that the VM is set up for.
UV=uv==0.13.9

say() { printf '%s: %s\n' "$HOST" "$*" >&2; }

die() {
  say "$*"
  exit 1
}

# The release of the code: sent as a tar file, with an environment of its own, so that a run under way keeps what it began with.
install() {
  local release=$1 python=$2 root=$BASE/releases/$1
  mkdir -p "$BASE/releases" "$RUN" "$BASE/work"
  exec 8> "$BASE/setup.lock"
  flock 8
  if [[ ! -e $root/installed ]]; then
    rm -rf -- "$root"
    mkdir -p "$root/code"
    tar -xf "$BASE/incoming/xretrieval-$release.tar" -C "$root/code"
    if [[ -e $BASE/incoming/prepare-$release.sh ]]; then cp "$BASE/incoming/prepare-$release.sh" "$root/prepare.sh"; fi
    prepare "$root"
    make_environment "$root" "$python"
    touch "$root/installed"
  fi
  ln -sfn "releases/$release" "$BASE/current.part"
  mv -T "$BASE/current.part" "$BASE/current"
  rm -f -- "$BASE/incoming/xretrieval-$release.tar" "$BASE/incoming/prepare-$release.sh"
  forget_old_releases "$release"
  say "release $release is installed"
}

# The user's own script: packages of the system, a bucket to mount. Again before each run, for a VM may have been restarted.
# Without our locks: a daemon that it starts would hold them for ever.
prepare() {
  if [[ ! -e $1/prepare.sh ]]; then return; fi
  say "prepare.sh"
  (cd "$HOME" && bash "$1/prepare.sh") 8>&- 9>&- < /dev/null >&2 || die "prepare.sh failed; it can be run again by setup"
}

# uv brings a Python where the image has only an older one, and links packages between the environments of releases.
make_environment() {
  local root=$1 python=$2
  say "making the environment, Python $python: some minutes"
  if [[ ! -x $BASE/tools/bin/uv ]]; then
    python3 -m pip install --quiet --disable-pip-version-check --target "$BASE/tools" "$UV" >&2 || die "pip could not install $UV"
  fi
  "$BASE/tools/bin/uv" venv --quiet --python "$python" "$root/venv" >&2 || die "uv found no Python $python"
  "$BASE/tools/bin/uv" pip install --quiet --python "$root/venv" --constraint "$root/code/constraints/py${python/./}.txt" \
    --editable "$root/code[tpu]" >&2 || die "the installation failed; setup goes on from here"
  "$root/venv/bin/xretrieval" --version > /dev/null || die "xretrieval was installed, but does not start"
}

# All but the new one and that of a run under way.
forget_old_releases() {
  local used='' path
  if [[ -e $RUN/release ]] && ! flock --nonblock "$RUN/lock" true; then used=$(< "$RUN/release"); fi
  for path in "$BASE"/releases/*; do
    if [[ ${path##*/} != "$1" && ${path##*/} != "$used" ]]; then rm -rf -- "$path"; fi
  done
}

# Sent with mode 600 under another name; moved, so that no reader sees half of it.
keep_secrets() {
  chmod 600 "$BASE/incoming/secrets.env"
  mv "$BASE/incoming/secrets.env" "$BASE/secrets.env"
  say "secrets.env is kept, for this user only"
}

# start CODES MOST DELAY [NAME=VALUE ...] -- ARGUMENT ...: the supervisor, unless a run is under way.
start() {
  local release
  [[ -e $BASE/current/installed ]] || die "nothing is installed; run setup first"
  release=$(basename "$(readlink "$BASE/current")")
  exec 9>> "$RUN/lock"
  if ! flock --nonblock 9; then
    printf '%s\0' "$release" "$@" | cmp --silent - "$RUN/arguments" \
      || die "a run with other arguments or other code is under way, since $(< "$RUN/since"); stop it first"
    say "the run is under way already, since $(< "$RUN/since")"
    return
  fi
  prepare "$BASE/releases/$release"
  printf '%s\0' "$release" "$@" > "$RUN/arguments.part"
  mv "$RUN/arguments.part" "$RUN/arguments"
  printf '%s\n' "$release" > "$RUN/release"
  date -u +%Y-%m-%dT%H:%M:%SZ > "$RUN/since"
  rm -f "$RUN/exit_code" "$RUN/supervisor" "$RUN/child"
  echo 0 > "$RUN/restarts"
  ln -sfn "../releases/$release/code/gin_configs" "$BASE/work/gin_configs"
  # Of the release, not of `current`: a later setup must not change what a restart runs.
  setsid nohup bash "$BASE/releases/$release/code/launch/on_worker.sh" supervise "$release" "$@" < /dev/null >> "$RUN/train.log" 2>&1 &
  say "started, release $release"
}

# supervise RELEASE CODES MOST DELAY [NAME=VALUE ...] -- ARGUMENT ...: trains; begins again after an exit code of CODES (75: preempted,
# its state is saved), at most MOST times, never once it was told to stop.
supervise() {
  local release=$1 codes=$2 most=$3 delay=$4 restarts=0 code
  shift 4
  while [[ $1 != -- ]]; do
    export "${1?}"
    shift
  done
  shift
  load_secrets
  # Into a file Python would write by the block, and a log that is followed would lag.
  export PYTHONUNBUFFERED=1
  cd "$BASE/work"
  STOPPING='' CHILD=''
  trap 'STOPPING=1; if [[ $CHILD ]]; then kill -TERM "$CHILD" || true; fi' TERM
  # Only now, for `stop` sends SIGTERM to whoever is named here.
  echo "$$" > "$RUN/supervisor"
  while :; do
    train_once "$BASE/releases/$release/venv/bin/xretrieval" "$@" && code=0 || code=$?
    echo "[$(date -u +%H:%M:%S)] exit code $code"
    if [[ $STOPPING || ",$codes," != *",$code,"* ]] || ((restarts >= most)); then break; fi
    restarts=$((restarts + 1))
    echo "$restarts" > "$RUN/restarts"
    echo "[$(date -u +%H:%M:%S)] restart $restarts of at most $most"
    # All workers end together; a jitter keeps them from asking the coordinator at the same instant.
    sleep "$((delay + RANDOM % (delay + 1)))" 9>&- &
    wait $! || true
    if [[ $STOPPING ]]; then break; fi
  done
  echo "$code" > "$RUN/exit_code"
}

# `wait` comes back from a signal before the process has ended: it is asked again until it was not interrupted.
train_once() {
  local code=0 before
  "$1" train "${@:2}" &
  CHILD=$!
  echo "$CHILD" > "$RUN/child"
  if [[ $STOPPING ]]; then kill -TERM "$CHILD" || true; fi
  while :; do
    before=$STOPPING code=0
    wait "$CHILD" || code=$?
    if [[ $STOPPING == "$before" ]]; then break; fi
  done
  CHILD=''
  return "$code"
}

# Lines NAME=VALUE, taken as they stand: nothing in the file is run.
load_secrets() {
  local line
  if [[ ! -e $BASE/secrets.env ]]; then return; fi
  while IFS= read -r line || [[ $line ]]; do
    if [[ $line =~ ^[A-Za-z_][A-Za-z0-9_]*= ]]; then export "${line?}"; fi
  done < "$BASE/secrets.env"
}

under_way() { [[ -e $RUN/lock ]] && ! flock --nonblock "$RUN/lock" true; }

# SIGTERM: the run saves its state and ends; it is not begun again.
stop() {
  local seconds=$1 name pid=''
  if ! under_way; then
    say "no run is under way"
    return
  fi
  # The supervisor hands it on; where that was killed, the training process is told itself.
  for name in supervisor child; do
    pid=$(cat "$RUN/$name" 2> /dev/null || true)
    if [[ $pid ]] && grep -qF "$BASE" "/proc/$pid/cmdline" 2> /dev/null && kill -TERM "$pid"; then break; fi
    pid=''
  done
  [[ $pid ]] || die "somebody holds $RUN/lock, but neither supervisor nor training process is there"
  flock --timeout "$seconds" "$RUN/lock" true || die "still saving after $seconds s; stop again, or look at the log"
  say "stopped"
}

# One line, in one write: those of many workers come through together.
status() {
  local state release=none
  if [[ -e $BASE/current/installed ]]; then release=$(basename "$(readlink "$BASE/current")"); fi
  if under_way; then
    state="training since $(< "$RUN/since") with release $(< "$RUN/release"), $(< "$RUN/restarts") restarts"
  elif [[ -e $RUN/exit_code ]]; then
    state="ended with exit code $(< "$RUN/exit_code") after $(< "$RUN/restarts") restarts"
  elif [[ -e $RUN/arguments ]]; then
    state="cut off without an exit code: the VM was restarted, or the supervisor killed"
  else
    state="has not trained"
  fi
  printf '%s: %s (installed: %s)\n' "$HOST" "$state" "$release"
}

# The last line of WORKDIR/metrics.jsonl, where WORKDIR was given to the run; else of the log.
metrics() {
  local argument workdir=''
  local -a arguments=()
  if [[ -e $RUN/arguments ]]; then mapfile -d '' -t arguments < "$RUN/arguments"; fi
  for argument in ${arguments[@]+"${arguments[@]}"}; do
    if [[ $argument =~ ^(--set=|--gin\.)?WORKDIR=[\'\"]?([^\'\"]*) ]]; then workdir=${BASH_REMATCH[2]}; fi
  done
  cd "$BASE/work" 2> /dev/null || die "nothing is installed; run setup first"
  if [[ $workdir && -s $workdir/metrics.jsonl ]]; then
    tail -n 1 -- "$workdir/metrics.jsonl"
  elif [[ -s $RUN/train.log ]]; then
    tail -n 1 "$RUN/train.log"
  fi
}

logs() {
  local lines=$1 follow=$2
  [[ -e $RUN/train.log ]] || die "no log: no run has begun"
  # shellcheck disable=SC2086 # one flag, or none
  tail -n "$lines" $follow "$RUN/train.log" | sed -u "s/^/$HOST: /"
}

"$@"
