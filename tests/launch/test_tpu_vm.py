"""The verbs of launch/tpu_vm.sh, in their order and again, on VMs that are folders."""

import shutil
import stat
import subprocess

import pytest
from fake_cloud import commit, make_repository, wait_for

GIN = "--gin_file=gin_configs/runs/polyglot.gin"
# What shells, ssh and gcloud have eaten before.
HARD = [
    "--set",
    'TEXT=it\'s "two"  spaces',
    "$HOME `id` $(id) \\ \\n",
    "a\nb\n",
    "",
    "*",
    "~",
    "--x=ключ 密码",
    "'",
    "{a,b}",
    "!!",
    "a;b&c|d>e #f",
    "-",
]


def test_a_session_from_create_to_delete(cloud):
    assert "requested pod" in cloud.run("create")
    assert "is installed" in cloud.run("setup")
    cloud.run("run", "--", GIN)
    assert [cloud.ends(home) for home in cloud.homes()] == [0, 0]
    assert [cloud.starts(home) for home in cloud.homes()] == [[["train", GIN]]] * 2
    said = cloud.run("status")
    assert "pod: ACTIVE" in said
    assert said.count("ended with exit code 0 after 0 restarts") == 2
    assert "training, start 0" in cloud.run("logs", "--no-follow", "--worker=all")
    assert "deleted" in cloud.run("delete", "--yes")
    assert not (cloud.folder / "vms").exists()
    assert "NOT_FOUND" in cloud.run("delete", "--yes")
    assert "ABSENT" in cloud.run("status", fails=4)


@pytest.mark.parametrize("shell", ["bash", "dash"])
def test_arguments_arrive_as_they_were_given(pod, shell):
    pod.run("run", "--env", "LIBTPU_INIT_ARGS=--a='b c' --d=$e", "--", *HARD, LOGIN_SHELL=shell)
    for home in pod.homes():
        pod.ends(home)
        assert pod.starts(home) == [["train", *HARD]]
        environment = (home / "environment").read_text().split("\0")
        assert {"LIBTPU_INIT_ARGS=--a='b c' --d=$e", "JAX_PLATFORMS=tpu,cpu"} <= set(environment)


@pytest.mark.parametrize("state", ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"])
def test_create_asks_once(cloud, state):
    cloud.set_state(state)
    assert f"pod exists already: {state}" in cloud.run("create")
    assert cloud.verbs() == ["queued-resources describe"]


@pytest.mark.parametrize("state", ["SUSPENDED", "FAILED"])
def test_what_was_preempted_is_requested_anew(cloud, state):
    cloud.set_state(state)
    for verb in (["setup"], ["run", "--", GIN], ["status"]):
        assert "run create" in cloud.run(*verb, fails=4)
    cloud.forget_calls()
    assert f"pod is {state}: its nodes are gone" in cloud.run("create", "--wait=5")
    assert cloud.verbs() == [f"queued-resources {verb}" for verb in ("describe", "delete", "create", "describe")]
    assert "--force" in cloud.calls()[1]


def test_create_waits_for_what_is_going(cloud):
    cloud.set_state("DELETING")
    assert "run create again in a minute" in cloud.run("create", fails=4)
    cloud.set_state("PROVISIONING")
    assert "still PROVISIONING after 1 s" in cloud.run("create", "--wait=1", fails=4)
    assert "not ACTIVE yet" in cloud.run("setup", fails=4)


def test_the_request_is_what_was_asked_for(cloud):
    flags = ["--spot", "--network=net", "--subnetwork", "sub", "--service-account=a@b.iam", "--internal-ips", "--slices=3"]
    cloud.run("create", *flags)
    create = cloud.calls()[1]
    assert {"--spot", "--network=net", "--subnetwork=sub", "--service-account=a@b.iam", "--internal-ips"} <= set(create)
    assert {"--node-count=3", "--node-prefix=pod", "--accelerator-type=v5litepod-8", "--zone=zone", "--project=project"} <= set(create)
    assert "--reserved" not in create
    cloud.run("setup", "--internal-ips")
    ssh = [call for call in cloud.calls() if call[3] in ("ssh", "scp")]
    assert len(ssh) == 9
    assert all("--internal-ip" in call for call in ssh)


def test_what_is_sent_is_committed(pod):
    for home in pod.homes():
        code = home / ".xretrieval/current/code"
        assert sorted(path.name for path in code.iterdir()) == ["constraints", "gin_configs", "launch", "setup.py"]
        calls = (home / "uv_calls").read_text().splitlines()
        assert calls[0].startswith("venv --quiet --python 3.11 ")
        assert "/constraints/py311.txt --editable" in calls[1]
        assert calls[1].endswith("/code[tpu]")
        # Nobody else on the VM reads it.
        assert stat.S_IMODE((home / ".xretrieval").stat().st_mode) == 0o700
    assert "files that git does not know, are not sent" in pod.run("setup")


def test_setup_installs_once(pod):
    assert "is installed on every worker already" in pod.run("setup")
    assert pod.verbs() == ["queued-resources describe", "tpu-vm ssh"]
    # A worker that lacks it (its VM was replaced) gets it, the other is left alone.
    first, second = pod.homes()
    shutil.rmtree(second / ".xretrieval")
    pod.run("setup")
    assert [len((home / "uv_calls").read_text().splitlines()) for home in (first, second)] == [2, 4]


def test_a_run_keeps_the_release_that_it_began_with(tmp_path, pod):
    for home in pod.homes():
        (home / "exit_codes").write_text("wait\n")
    pod.run("run", "--", GIN)
    pod.repository = shutil.copytree(pod.repository, tmp_path / "changed")
    (pod.repository / "launch/new.txt").write_text("new")
    commit(pod.repository, "second")
    pod.run("setup")
    for home in pod.homes():
        base = home / ".xretrieval"
        assert (base / "current/code/launch/new.txt").exists()
        assert len(list((base / "releases").iterdir())) == 2
    assert "other arguments or other code is under way" in pod.run("run", "--", GIN, fails=3)
    pod.run("stop")
    pod.run("run", "--", GIN)
    (pod.repository / "launch/new.txt").unlink()
    commit(pod.repository, "third")
    pod.run("setup")
    for home in pod.homes():
        pod.ends(home)
    pod.run("setup", "--python=3.12")
    releases = [path.name for path in (pod.homes()[0] / ".xretrieval/releases").iterdir()]
    assert len(releases) <= 2
    assert any(name.endswith("-py3.12") for name in releases)


def test_an_installation_that_failed_goes_on(created):
    cloud = created
    (cloud.homes()[1] / "uv_fails").touch()
    said = cloud.run("setup", fails=3)
    assert "pod-w1: the installation failed; setup goes on from here" in said
    assert "failed with exit code 1: gcloud compute tpus tpu-vm ssh pod" in said
    # The old state is no release: nothing can be run from half of one.
    assert "nothing is installed" in cloud.run("run", "--", GIN, fails=3)
    cloud.run("setup")
    assert all((home / ".xretrieval/current/installed").exists() for home in cloud.homes())


def test_preparations_are_made_before_the_installation_and_each_run(tmp_path, created):
    cloud = created
    script = tmp_path / "prepare.sh"
    # A daemon that goes on, as a mount does: it must not hold the lock of the run.
    script.write_text("echo prepared >> ~/prepared\nsleep 30 > /dev/null 2>&1 &\n")
    cloud.run("setup", f"--prepare={script}")
    for _ in range(2):
        cloud.run("run", "--", GIN)
        assert [cloud.ends(home) for home in cloud.homes()] == [0, 0]
    assert [len(cloud.starts(home)) for home in cloud.homes()] == [2, 2]
    assert (cloud.homes()[0] / "prepared").read_text() == "prepared\n" * 3
    assert "is installed on every worker already" in cloud.run("setup", f"--prepare={script}")
    script.write_text("exit 9")
    assert "prepare.sh failed" in cloud.run("setup", f"--prepare={script}", fails=3)


def test_two_slices(cloud):
    cloud.run("create", "--slices=2")
    cloud.run("setup")
    cloud.run("run", "--", GIN)
    assert [home.name for home in cloud.homes()] == ["pod-0-w0", "pod-0-w1", "pod-1-w0", "pod-1-w1"]
    assert [cloud.ends(home) for home in cloud.homes()] == [0] * 4
    assert "failed on pod-1 (see above)" in cloud.run("run", "--", GIN, fails=3, FAIL_ON="ssh pod-1")
    cloud.forget_calls()
    cloud.run("logs", "--no-follow", "--slice=1")
    assert cloud.calls()[-1][4] == "pod-1"
    assert "pod has 2, counted from 0" in cloud.run("logs", "--slice=2", fails=2)


def test_status_shows_the_last_metrics(pod):
    workdir = pod.folder / "work dir"
    workdir.mkdir()
    (workdir / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2, "loss": 0.5}\n')
    assert pod.run("status").count("has not trained") == 2
    pod.run("run", "--", GIN, "--set", f"WORKDIR={workdir}")
    assert '{"step": 2, "loss": 0.5}' in pod.run("status")
    for home in pod.homes():
        pod.ends(home)
    pod.run("run", "--", GIN, f'--gin.WORKDIR="{workdir}"')
    assert '{"step": 2, "loss": 0.5}' in pod.run("status")


def test_logs_are_followed_until_they_are_interrupted(pod):
    for home in pod.homes():
        (home / "exit_codes").write_text("wait\n")
    pod.run("run", "--", GIN)
    following = subprocess.Popen(
        pod.command("logs", "--worker=1"), env=pod.environment(), stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert following.stdout.readline() == "pod-w1: training, start 0\n"
        with (pod.homes()[1] / ".xretrieval/run/train.log").open("a") as log:
            log.write("step 2\n")
        assert following.stdout.readline() == "pod-w1: step 2\n"
        assert following.poll() is None
    finally:
        # As ^C in a terminal: to all of its process group.
        subprocess.run(["kill", "-INT", "--", f"-{following.pid}"], check=True)
        following.wait(20)
        following.stdout.close()


def test_delete_asks(cloud):
    cloud.set_state("ACTIVE")
    assert "nobody to ask; give --yes" in cloud.run("delete", fails=2)
    assert cloud.calls() == []


# As a user would: the lines are given to a shell, and the cloud is then as if the verb had run.
@pytest.mark.parametrize(
    "verb",
    [
        ["create", "--slices=2", "--spot"],
        ["setup"],
        ["run", "--", *HARD],
        pytest.param(["status"], marks=pytest.mark.slow),
        pytest.param(["logs", "--no-follow"], marks=pytest.mark.slow),
        pytest.param(["stop"], marks=pytest.mark.slow),
        pytest.param(["delete", "--yes"], marks=pytest.mark.slow),
    ],
    ids=lambda verb: verb[0],
)
def test_a_dry_run_prints_what_would_be_called(request, tmp_path, verb):
    cloud = request.getfixturevalue({"create": "cloud", "setup": "created"}.get(verb[0], "pod"))
    if verb[0] == "logs":
        cloud.run("run", "--", GIN)
        wait_for(lambda: cloud.run("logs", "--no-follow", "--worker=0"))
    shutil.copytree(cloud.folder, tmp_path / "before", symlinks=True)
    cloud.forget_calls()
    command = cloud.command(verb[0], "--dry-run", *verb[1:])
    printed = subprocess.run(command, env=cloud.environment(), check=True, capture_output=True, text=True, timeout=60).stdout
    assert cloud.calls() == []
    cloud.run(*verb)
    called = cloud.calls()
    assert called
    # Back to where it was, then by hand. What it ran to find out whether there is a request fails when there is none.
    cloud.end()
    shutil.rmtree(cloud.folder)
    shutil.copytree(tmp_path / "before", cloud.folder, symlinks=True)
    cloud.forget_calls()
    subprocess.run(["bash", "-c", printed], env=cloud.environment(), check=verb[0] != "create", capture_output=True, timeout=60)
    assert cloud.calls() == called


def test_a_checkout_is_needed(tmp_path, created):
    cloud = created
    cloud.repository = make_repository(tmp_path / "other")
    shutil.rmtree(cloud.repository / ".git")
    assert "not in a git checkout" in cloud.run("setup", fails=2, GIT_CEILING_DIRECTORIES=str(tmp_path))
