"""What goes wrong around launch/tpu_vm.sh: calls that fail, hang or half succeed, training that ends, credentials, settings that are not there."""

import os
import signal
import stat

import pytest
from fake_cloud import ROOT, command_line, wait_for

GIN = "--gin_file=gin_configs/runs/polyglot.gin"
TOKEN = "hf_" + "aBcDeFgHiJkLmNoPqRsT"


# Every call of every verb, once each: the verb fails and names the call, and the same command goes on from there.
@pytest.mark.parametrize(
    ("verb", "calls"),
    [
        (["create"], ["queued-resources describe", "queued-resources create"]),
        (["setup"], ["queued-resources describe", "tpu-vm ssh", "tpu-vm scp", "tpu-vm ssh"]),
        (["run", "--", GIN], ["queued-resources describe", "tpu-vm ssh"]),
        pytest.param(["status"], ["queued-resources describe", "tpu-vm ssh", "tpu-vm ssh"], marks=pytest.mark.slow),
        pytest.param(["stop"], ["queued-resources describe", "tpu-vm ssh"], marks=pytest.mark.slow),
        (["delete", "--yes"], ["queued-resources delete"]),
    ],
    ids=lambda value: value[0],
)
def test_each_call_may_fail(request, verb, calls):
    cloud = request.getfixturevalue({"create": "cloud", "setup": "created"}.get(verb[0], "pod"))
    for number, call in enumerate(calls, 1):
        cloud.forget_calls()
        said = cloud.run(*verb, fails=3, FAIL_AT=str(number))
        # Nothing is tried after a failure that will not pass.
        assert cloud.verbs() == calls[:number]
        assert f"failed with exit code 1: gcloud compute tpus {call}" in said
    cloud.forget_calls()
    cloud.run(*verb)
    assert cloud.verbs() == calls
    if verb[0] == "run":
        assert [cloud.ends(home) for home in cloud.homes()] == [0, 0]
        assert [len(cloud.starts(home)) for home in cloud.homes()] == [1, 1]
    if verb[0] == "setup":
        assert all((home / ".xretrieval/current/installed").exists() for home in cloud.homes())


def test_a_failure_that_passes_is_tried_again(cloud):
    settings = {"FAIL_ON": "queued-resources", "FAIL_TIMES": "3", "FAIL_SAYS": "ERROR: HTTPError 503: UNAVAILABLE"}
    said = cloud.run("create", **settings)
    assert cloud.verbs() == ["queued-resources describe"] * 4 + ["queued-resources create"]
    assert said.count("again in 0 s") == 3
    cloud.forget_calls()
    # ssh's own exit code, and only so often.
    said = cloud.run("setup", "--attempts=2", fails=3, FAIL_ON="tpu-vm ssh", FAIL_SAYS="", FAIL_CODE="255")
    assert cloud.verbs()[1:] == ["tpu-vm ssh"] * 2
    assert "failed with exit code 255: gcloud compute tpus tpu-vm ssh pod" in said


def test_an_answer_that_was_lost(cloud):
    # The request arrived, its answer did not: the second attempt finds it, and that is well.
    cloud.set_state("ACTIVE")
    said = cloud.run("create", FAIL_ON="describe", FAIL_SAYS="NOT_FOUND", FAIL_TIMES="1")
    assert cloud.verbs() == ["queued-resources describe", "queued-resources create"]
    assert "ALREADY_EXISTS" in said


def test_a_call_that_hangs_is_ended(cloud):
    said = cloud.run("create", "--timeout=1", "--attempts=1", fails=3, HANG_ON="describe")
    assert "no answer in 1 s" in said
    assert "failed with exit code 124: gcloud compute tpus queued-resources describe pod" in said
    assert len(cloud.calls()) == 1


def exit_codes(cloud, *lines):
    for home in cloud.homes():
        (home / "exit_codes").write_text("".join(f"{line}\n" for line in lines))


def test_75_begins_again_and_no_other_code_does(pod):
    exit_codes(pod, 75, 75, 1, 0)
    pod.run("run", "--restart-delay=0", "--", GIN, "a b")
    assert [pod.ends(home) for home in pod.homes()] == [1, 1]
    assert [pod.starts(home) for home in pod.homes()] == [[["train", GIN, "a b"]] * 3] * 2
    assert pod.run("status").count("ended with exit code 1 after 2 restarts") == 2


def test_more_codes_when_told_but_not_for_ever(pod):
    exit_codes(pod, 134, 75, 75, 75)
    pod.run("run", "--restart-delay=0", "--restart-on=75,134", "--max-restarts=2", "--", GIN)
    assert [pod.ends(home) for home in pod.homes()] == [75, 75]
    assert [len(pod.starts(home)) for home in pod.homes()] == [3, 3]


def test_a_run_under_way_is_not_started_again(pod):
    exit_codes(pod, "wait", 0)
    pod.run("run", "--", GIN)
    assert pod.run("run", "--", GIN).count("the run is under way already") == 2
    assert pod.run("run", "--", "--gin_file=other.gin", fails=3).count("stop it first") == 2
    assert pod.run("status").count("training since") == 2
    wait_for(lambda: all(pod.starts(home) for home in pod.homes()))
    assert pod.run("stop").count("stopped") == 2
    # Its state is saved (75), but it was told to stop: no restart.
    assert [pod.ends(home) for home in pod.homes()] == [75, 75]
    assert [len(pod.starts(home)) for home in pod.homes()] == [1, 1]
    assert pod.run("status").count("ended with exit code 75 after 0 restarts") == 2
    assert pod.run("stop").count("no run is under way") == 2
    # The same command goes on.
    pod.run("run", "--", GIN)
    assert [pod.ends(home) for home in pod.homes()] == [0, 0]
    assert [len(pod.starts(home)) for home in pod.homes()] == [2, 2]


def test_a_run_is_stopped_while_it_waits_to_begin_again(pod):
    exit_codes(pod, 75)
    pod.run("run", "--restart-delay=600", "--", GIN)
    wait_for(lambda: all((home / ".xretrieval/run/restarts").read_text() == "1\n" for home in pod.homes()))
    assert pod.run("stop").count("stopped") == 2
    assert [pod.ends(home) for home in pod.homes()] == [75, 75]
    assert [len(pod.starts(home)) for home in pod.homes()] == [1, 1]


def test_a_killed_supervisor_lets_no_second_run_start(pod):
    exit_codes(pod, "wait")
    pod.run("run", "--", GIN)
    home = pod.homes()[0]
    wait_for(lambda: all(pod.starts(home) for home in pod.homes()))
    supervisor, child = (int((home / ".xretrieval/run" / name).read_text()) for name in ("supervisor", "child"))
    os.kill(supervisor, signal.SIGKILL)
    assert pod.run("run", "--", GIN).count("the run is under way already") == 2
    # `stop` reaches the training process itself.
    assert pod.run("stop").count("stopped") == 2
    assert command_line(str(child)) == ""
    assert "cut off without an exit code" in pod.run("status")


def test_a_worker_that_ended_alone_starts_alone(pod):
    first, second = pod.homes()
    (first / "exit_codes").write_text("wait\n")
    (second / "exit_codes").write_text("1\n0\n")
    pod.run("run", "--", GIN)
    assert pod.ends(second) == 1
    said = pod.run("run", "--", GIN)
    assert "pod-w0: the run is under way already" in said
    assert "pod-w1: started" in said


def test_secrets_are_in_no_command_line(tmp_path, pod):
    secrets = tmp_path / "secrets.env"
    secrets.write_text(f"# for the hub\nHF_TOKEN={TOKEN}\nODD=a b $(id) 'c'\nrm -rf ~\n")
    secrets.chmod(0o644)
    assert "others can read it; chmod 600" in pod.run("setup", f"--secrets={secrets}", fails=2)
    secrets.chmod(0o600)
    said = pod.run("setup", f"--secrets={secrets}")
    said += pod.run("run", "--", GIN)
    for home in pod.homes():
        pod.ends(home)
        environment = (home / "environment").read_text().split("\0")
        assert {f"HF_TOKEN={TOKEN}", "ODD=a b $(id) 'c'"} <= set(environment)
        assert stat.S_IMODE((home / ".xretrieval/secrets.env").stat().st_mode) == 0o600
        assert not (home / ".xretrieval/incoming/secrets.env").exists()
        assert TOKEN not in (home / ".xretrieval/run/train.log").read_text() + (home / ".xretrieval/run/arguments").read_text()
    assert TOKEN not in said + pod.run("status") + repr(pod.calls())


def test_secrets_that_each_run_fetches_stay_off_the_disk(tmp_path, created):
    cloud, memory, script = created, tmp_path / "memory.env", tmp_path / "prepare.sh"
    script.write_text(f"umask 077; echo HF_TOKEN={TOKEN} > {memory}; ln -sfn {memory} ~/.xretrieval/secrets.env\n")
    cloud.run("setup", f"--prepare={script}")
    memory.unlink()  # as it is after the VM was restarted
    said = cloud.run("run", "--", GIN)
    for home in cloud.homes():
        assert cloud.ends(home) == 0
        assert f"HF_TOKEN={TOKEN}" in (home / "environment").read_text().split("\0")
        assert (home / ".xretrieval/secrets.env").is_symlink()
    assert TOKEN not in said + repr(cloud.calls())


@pytest.mark.parametrize(
    "argument",
    [
        f"--env=HF_TOKEN={TOKEN}",
        "--env=AWS_SECRET_ACCESS_KEY=x",
        "--hf-token",
        f"--gin.x='{TOKEN}'",
        "--set=API_KEY=x",
        "--password=x",
        "MY_SECRET=x",
        "AIza" + "x" * 30,
        "--token=x",
    ],
)
def test_a_token_is_refused(pod, argument):
    for arguments in (["--", GIN, argument], [argument, "--", GIN]):
        said = pod.run("run", *arguments, fails=2)
        assert "looks like a credential" in said
        assert TOKEN not in said
    assert pod.calls() == []


def test_what_is_no_token(pod):
    pod.run("run", "--", "--gin.mixture.tokenizer_file='tokens'", "--set", "TOKENIZER_FILE=x", "--gin.plan_batches.num_tokens=5")
    assert all(pod.ends(home) == 0 for home in pod.homes())


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        (["create"], {"TPU_NAME": ""}, "NAME is missing: give --name NAME, or set TPU_NAME"),
        (["create"], {"PROJECT_ID": ""}, "PROJECT_ID is missing: give --project ID, or set PROJECT_ID"),
        (["create"], {"ZONE": ""}, "ZONE is missing: give --zone ZONE, or set ZONE"),
        (["create"], {"ACCELERATOR_TYPE": ""}, "ACCELERATOR_TYPE is missing: give --accelerator-type TYPE, or set ACCELERATOR_TYPE"),
        (["create"], {"RUNTIME_VERSION": ""}, "RUNTIME_VERSION is missing: give --runtime-version VERSION, or set RUNTIME_VERSION"),
        (["creat"], {}, "no verb creat; there are create setup run status logs stop delete"),
        (["create", "--slices=0"], {}, "slices, attempts and timeout must be 1 or more"),
        (["create", "--slices", "two"], {}, "SLICES is 'two': must be a whole number"),
        (["create", "--name=Pod_1"], {}, "--name 'Pod_1': must be of small letters, digits and hyphens"),
        (["create", "--zone"], {}, "--zone: no value"),
        (["create", "--bogus"], {}, "--bogus: no such flag; see --help"),
        (["create", "--bogus", "--spot"], {}, "--bogus: no such flag; see --help"),
        (["create", "--yes=1"], {}, "--yes: takes no value"),
        (["create", "--spot", "--reserved"], {}, "--spot and --reserved: a request is one or the other"),
        (["create", "--spott=1"], {}, "--spott: no such flag"),
        (["create", "pod"], {}, "'pod': not a flag; arguments of `xretrieval train` stand after --"),
        (["run"], {}, "no arguments for `xretrieval train`; give them after --"),
        (["run", "--restart-on=all", "--", GIN], {}, "--restart-on 'all': must be exit codes from 1 to 255, as 75 or 75,76"),
        (["run", "--restart-on=0", "--", GIN], {}, "--restart-on '0': must be exit codes from 1 to 255"),
        (["run", "--restart-on=75,256", "--", GIN], {}, "--restart-on '75,256': must be exit codes from 1 to 255"),
        (["run", "--env=x y=1", "--", GIN], {}, "--env: must be NAME=VALUE"),
        (["setup", "--python=3.10"], {}, "--python '3.10': must be 3.11, 3.12 or 3.13"),
        (["setup", "--prepare=no.sh"], {}, "--prepare 'no.sh': no such file"),
        (["setup", "--secrets=no.env"], {}, "--secrets 'no.env': no such file"),
        (["logs", "--worker=two"], {}, "--worker 'two': must be a number or all"),
        (["create"], {"PATH": "/nowhere"}, "gcloud is not on the PATH"),
    ],
    ids=lambda value: "",
)
def test_settings_that_are_missing_or_wrong(cloud, arguments, settings, message):
    if "PATH" in settings:  # what the script itself needs, and no gcloud
        for tool in ("bash", "dirname", "mktemp", "rm", "kill"):
            (cloud.folder / "tools" / tool).symlink_to(f"/usr/bin/{tool}")
        settings = {"PATH": str(cloud.folder / "tools")}
    assert message in cloud.run(*arguments, fails=2, **settings)
    assert cloud.calls() == []


def test_all_that_is_missing_is_said_at_once(cloud):
    said = cloud.run("create", fails=2, TPU_NAME="", ZONE="")
    assert "NAME is missing" in said
    assert "ZONE is missing" in said


def test_help_names_every_flag(cloud):
    script = (ROOT / "launch/tpu_vm_settings.sh").read_text()
    flags = {
        word
        for line in script.splitlines()
        if line.startswith("    --") and ") " in line
        for word in line.split(")")[0].split()
        if word != "|"
    }
    usage = cloud.run("--help")
    assert len(flags) > 20
    assert [flag for flag in sorted(flags) if flag not in usage] == []
