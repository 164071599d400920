"""A cloud to launch into: a `gcloud` that notes its calls and fails when told to, and VMs that are folders, whose ssh really runs the command.

`Cloud.run` runs the real `launch/tpu_vm.sh`, out of a small git repository that holds `launch/` and what a setup reads. Faked is what is not ours: gcloud
(the answers are those of gcloud 528), pip, uv and, as the program to be started, `xretrieval`, which notes its arguments and exits as told.
"""

import fcntl
import os
import pathlib
import shutil
import signal
import subprocess
import time

ROOT = pathlib.Path(__file__).parents[2]
NAME = "pod"

# FAIL_AT=N: the Nth call fails; FAIL_ON=TEXT: those with the text in them; HANG_ON=TEXT: those hang. FAIL_TIMES: so many failures, FAIL_SAYS, FAIL_CODE.
GCLOUD = r"""#!/usr/bin/env bash
set -u
exec 7>> "$CLOUD/lock"; flock 7
number=$(($(cat "$CLOUD/count" 2> /dev/null || echo 0) + 1)); echo "$number" > "$CLOUD/count"
printf '%s\0' "$@" > "$CLOUD/calls/$(printf %04d "$number")"
failed=$(cat "$CLOUD/failed" 2> /dev/null || echo 0)
if [[ ${FAIL_AT:-} == "$number" || ( -n ${FAIL_ON:-} && "$*" == *"$FAIL_ON"* ) ]] && ((failed < ${FAIL_TIMES:-1000})); then
  echo $((failed + 1)) > "$CLOUD/failed"
  echo "${FAIL_SAYS:-ERROR: (gcloud) PERMISSION_DENIED: it is not allowed}" >&2; exit "${FAIL_CODE:-1}"
fi
exec 7>&-
if [[ -n ${HANG_ON:-} && "$*" == *"$HANG_ON"* ]]; then sleep 600; fi
verb="$3 $4" name=$5 worker=all command='' nodes=()
for argument in "$@"; do
  case $argument in
    --worker=*) worker=${argument#*=} ;; --command=*) command=${argument#*=} ;;
    --node-id=*) nodes=("${argument#*=}") ;; --node-count=*) count=${argument#*=} ;;
    --node-prefix=*) nodes=(); for ((i = 0; i < count; i++)); do nodes+=("${argument#*=}-$i"); done ;;
  esac
done
case $verb in
  'queued-resources describe')
    cat "$CLOUD/state" 2> /dev/null || { echo "ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: Resource was not found" >&2; exit 1; } ;;
  'queued-resources create')
    if [[ -e $CLOUD/state ]]; then echo "ERROR: (gcloud.compute.tpus.queued-resources.create) ALREADY_EXISTS: Resource already exists" >&2; exit 1; fi
    for node in "${nodes[@]}"; do mkdir -p "$CLOUD/vms/$node-w"{0,1}; done
    printf 'ACTIVE\t%s\n' "$(IFS=';'; echo "${nodes[*]}")" > "$CLOUD/state" ;;
  'queued-resources delete')
    [[ -e $CLOUD/state ]] || { echo "ERROR: (gcloud.compute.tpus.queued-resources.delete) NOT_FOUND: Resource was not found" >&2; exit 1; }
    rm -rf "$CLOUD/state" "$CLOUD/vms" ;;
  'tpu-vm ssh')
    code=0
    for home in "$CLOUD/vms/$name"-w*; do
      if [[ $worker == all || $home == *-w$worker ]]; then
        # As sshd starts a command: by the login shell, in the home folder, with none of our environment.
        (cd "$home" && env -i HOME="$home" HOSTNAME="${home##*/}" PATH="$CLOUD/tools:/usr/bin:/bin" "${LOGIN_SHELL:-bash}" -c "$command") || code=$?
      fi
    done
    exit "$code" ;;
  'tpu-vm scp')
    files=(); for argument in "${@:5}"; do case $argument in --*) ;; *:*) target=$argument ;; *) files+=("$argument") ;; esac; done
    for home in "$CLOUD/vms/${target%%:*}"-w*; do cp "${files[@]}" "$home/${target#*:}" || exit 1; done ;;
  *) echo "ERROR: no such verb: $verb" >&2; exit 2 ;;
esac
"""

# `python3 -m pip install ... --target TOOLS uv`.
PIP = r"""#!/bin/bash
while [[ $1 != --target ]]; do shift; done
mkdir -p "$2/bin" && cp "$(dirname "$0")/uv" "$2/bin/uv"
"""

# `uv venv ... VENV` and `uv pip install ... --editable CODE[tpu]`.
UV = r"""#!/bin/bash
printf '%s\n' "$*" >> "$HOME/uv_calls"
if [[ -e $HOME/uv_fails && $1 == pip ]]; then rm "$HOME/uv_fails"; echo "error: no route to the index" >&2; exit 2; fi
if [[ $1 == venv ]]; then mkdir -p "${@: -1}/bin" && cp "TOOLS/xretrieval" "${@: -1}/bin/xretrieval"; fi
"""

# Each line of ~/exit_codes is the end of one start: a code, or `wait`: until SIGTERM, then 75. Without lines, 0.
TRAINER = r"""#!/bin/bash
if [[ $1 == --version ]]; then exit 0; fi
n=$(ls "$HOME/starts" 2> /dev/null | wc -l); mkdir -p "$HOME/starts"
end=$(sed -n "$((n + 1))p" "$HOME/exit_codes" 2> /dev/null)
env -0 > "$HOME/environment"
printf '%s\0' "$@" > "$HOME/starts/$n.part" && mv "$HOME/starts/$n.part" "$HOME/starts/$n"
echo "training, start $n"
if [[ $end == wait ]]; then trap 'echo saving; exit 75' TERM; while :; do sleep 0.05; done; fi
exit "${end:-0}"
"""


def write_tool(path: pathlib.Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def make_repository(folder: pathlib.Path) -> pathlib.Path:
    """A git repository with `launch/`, and a file each of what must and must not be sent."""
    shutil.copytree(ROOT / "launch", folder / "launch")
    for name in ("setup.py", "constraints/py311.txt", "constraints/py312.txt", "gin_configs/runs/polyglot.gin"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    commit(folder, "first")
    (folder / "recordings.wav").write_text("not known to git")
    return folder


def commit(folder: pathlib.Path, message: str) -> None:
    identity = ("-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false")
    commands = (["init", "-q"], ["add", "--all"], [*identity, "commit", "-q", "-m", message])
    for command in commands:
        subprocess.run(["git", "-C", folder, *command], check=True)


class Cloud:
    """A folder with `gcloud`, its notes, and VMs of two workers a slice."""

    def __init__(self, folder: pathlib.Path, repository: pathlib.Path, before: "Cloud | None" = None):
        """Nothing but the tools; or a copy of another cloud, as it is."""
        self.folder, self.repository = folder, repository
        if before is not None:
            shutil.copytree(before.folder, folder, symlinks=True)
            return
        for name in ("calls", "tools", "bin", "cache"):
            (folder / name).mkdir(parents=True)
        write_tool(folder / "bin/gcloud", GCLOUD)
        for name, text in (("python3", PIP), ("uv", UV), ("xretrieval", TRAINER)):
            write_tool(folder / "tools" / name, text.replace("TOOLS", str(folder / "tools")))

    def environment(self, **settings: str) -> dict[str, str]:
        path = f"{self.folder / 'bin'}:/usr/bin:/bin"
        own = {
            "CLOUD": str(self.folder),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "TPU_NAME": NAME,
            "PROJECT_ID": "project",
            "ZONE": "zone",
        }
        of_create = {"ACCELERATOR_TYPE": "v5litepod-8", "RUNTIME_VERSION": "v2-alpha-tpuv5-lite"}
        return {"PATH": path, "HOME": str(self.folder), "LC_ALL": "C.UTF-8", **own, **of_create, **settings}

    def run(self, *arguments: str, fails: int = 0, **settings: str) -> str:
        """What `tpu_vm.sh` with these arguments says on both streams; `fails` is the exit code it must have."""
        done = subprocess.run(
            self.command(*arguments), env=self.environment(**settings), capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
        )
        assert done.returncode == fails, f"exit code {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def command(self, verb: str, *arguments: str) -> list[str]:
        return ["bash", str(self.repository / "launch/tpu_vm.sh"), verb, "--retry-delay=0", *arguments]

    def calls(self) -> list[list[str]]:
        """The arguments of each call of gcloud, as it got them."""
        return [path.read_text().split("\0")[:-1] for path in sorted((self.folder / "calls").iterdir())]

    def verbs(self) -> list[str]:
        return [" ".join(call[2:4]) for call in self.calls()]

    def forget_calls(self) -> None:
        for path in (self.folder / "calls").iterdir():
            path.unlink()
        for name in ("count", "failed"):
            (self.folder / name).unlink(missing_ok=True)

    def set_state(self, state: str, nodes: str = NAME) -> None:
        (self.folder / "state").write_text(f"{state}\t{nodes}\n")

    def homes(self) -> list[pathlib.Path]:
        return sorted((self.folder / "vms").iterdir())

    def starts(self, home: pathlib.Path) -> list[list[str]]:
        """The arguments of each start of the training process on a worker."""
        paths = sorted((home / "starts").glob("[0-9]"), key=lambda path: int(path.name))
        return [path.read_text().split("\0")[:-1] for path in paths]

    def ends(self, home: pathlib.Path, seconds: float = 20) -> int:
        """Waits for the end of a worker's run, until nobody holds its lock; its exit code."""
        run = home / ".xretrieval/run"
        wait_for((run / "exit_code").exists, seconds)
        with (run / "lock").open("a") as lock:
            wait_for(lambda: locked(lock), seconds)
        return int((run / "exit_code").read_text())

    def end(self) -> None:
        """Kills what runs on the VMs."""
        for path in self.folder.glob("vms/*/.xretrieval/run/*"):
            if path.name in ("supervisor", "child") and str(path.parents[1]) in command_line(path.read_text().strip()):
                os.kill(int(path.read_text()), signal.SIGKILL)


def command_line(pid: str) -> str:
    path = pathlib.Path(f"/proc/{pid}/cmdline")
    return path.read_text() if pid and path.exists() else ""


def locked(file) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait_for(condition, seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)
