"""The JobSet manifest: its structure, that arguments arrive, and what is refused."""

import re

import pytest
from fake_cloud import ROOT
from manifests import FLAGS, RUN, job_of, made, pod_of, rendered

from launch.gke import render
from xretrieval import joining

TOKEN = "hf_" + "aBcDeFgHiJkLmNoPqRsT"

# The fields that the APIs have (JobSet v1alpha2, batch/v1 Job, core/v1 Pod), of those that we use. A value: its type, an allowed value, a list of
# one kind of item, or a dictionary; `str: str` is a map; a key with ? may be missing.
SCHEMA = {
    "apiVersion": "jobset.x-k8s.io/v1alpha2",
    "kind": "JobSet",
    "metadata": {"name": str, "annotations": {str: str}},
    "spec": {
        "network": {"enableDNSHostnames": bool, "subdomain": str, "publishNotReadyAddresses": bool},
        "failurePolicy": {"maxRestarts": int, "rules": [{"name": str, "action": str, "onJobFailureReasons": [str]}]},
        "replicatedJobs": [
            {
                "name": str,
                "replicas": int,
                "template": {
                    "spec": {
                        "backoffLimit": int,
                        "completionMode": "Indexed",
                        "completions": int,
                        "parallelism": int,
                        "podFailurePolicy": {
                            "rules": [
                                {
                                    "action": str,
                                    "onPodConditions?": [{"type": str, "status": str}],
                                    "onExitCodes?": {"containerName": str, "operator": str, "values": [int]},
                                }
                            ]
                        },
                        "template": {
                            "metadata": {"annotations": {str: str}},
                            "spec": {
                                "restartPolicy": "Never",
                                "terminationGracePeriodSeconds": int,
                                "serviceAccountName?": str,
                                "nodeSelector": {str: str},
                                "tolerations": [{"key": str, "operator": str, "value?": str, "effect": str}],
                                "containers": [
                                    {
                                        "name": str,
                                        "image": str,
                                        "command": [str],
                                        "args": [str],
                                        "env": [{"name": str, "value": str}],
                                        "envFrom?": [{"secretRef": {"name": str}}],
                                        "ports": [{"name": str, "containerPort": int}],
                                        "resources": {"requests": {str: int}, "limits": {str: int}},
                                        "volumeMounts": [{"name": str, "mountPath": str}],
                                    }
                                ],
                                "volumes": [{"name": str, "csi": {"driver": str, "volumeAttributes": {str: str}}}],
                            },
                        },
                    }
                },
            }
        ],
    },
}


def check(value, schema, path="manifest"):
    if isinstance(schema, list):
        assert isinstance(value, list), path
        for index, item in enumerate(value):
            check(item, schema[0], f"{path}[{index}]")
    elif isinstance(schema, dict) and str in schema:
        assert all(isinstance(key, str) and isinstance(item, schema[str]) for key, item in value.items()), path
    elif isinstance(schema, dict):
        known = {key.rstrip("?"): (item, key.endswith("?")) for key, item in schema.items()}
        assert not value.keys() - known.keys(), path
        for key, (item, optional) in known.items():
            assert optional or key in value, f"{path}.{key}"
            if key in value:
                check(value[key], item, f"{path}.{key}")
    else:
        assert type(value) is schema if isinstance(schema, type) else value == schema, path


EVERYTHING = [
    "--slices=2",
    "--spot",
    "--service_account=trainer",
    "--secret=hub",
    "--node_selector=pool=a",
    "--env=A=b",
    "--restart_on=134,75",
]


@pytest.mark.parametrize("flags", [[], EVERYTHING])
def test_structure(flags):
    check(made(*flags), SCHEMA)


def test_the_command_prints_what_the_function_makes():
    assert rendered(*EVERYTHING) == made(*EVERYTHING)


def test_a_run_on_two_slices():
    manifest = made(*EVERYTHING)
    pod, container = pod_of(manifest), pod_of(manifest)["containers"][0]
    assert manifest["spec"]["replicatedJobs"][0]["replicas"] == 2
    # 256 chips, 4 a host; a pod takes its host.
    assert (job_of(manifest)["completions"], job_of(manifest)["parallelism"]) == (64, 64)
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "16x16",
        "cloud.google.com/gke-spot": "true",
        "pool": "a",
    }
    assert container["command"] + container["args"] == ["xretrieval", "train", *RUN]
    assert {"name": "coordinator", "containerPort": joining.PORT} in container["ports"]
    assert {"name": "JAX_COORDINATOR_PORT", "value": "8476"} in container["env"]
    assert manifest["spec"]["network"]["subdomain"] == "run1"
    # The mount is a volume of the pod, with the annotation that brings the driver's sidecar, and no key: the service account may use it.
    assert [mount["name"] for mount in container["volumeMounts"]] == [volume["name"] for volume in pod["volumes"]]
    assert pod["volumes"][0]["csi"]["volumeAttributes"]["bucketName"] == "data"
    assert job_of(manifest)["template"]["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}


def test_hosts_see_one_bucket_and_folders_are_renamed_whole():
    readme = (ROOT / "launch/README.md").read_text()
    options = pod_of(made())["volumes"][0]["csi"]["volumeAttributes"]["mountOptions"].split(",")
    settings = dict(option.rpartition(":")[::2] for option in options if ":" in option)
    # The driver has the names of gcsfuse's configuration file; without these, gcsfuse caches what is there and what is not.
    assert settings == {"metadata-cache:ttl-secs": "0", "metadata-cache:negative-ttl-secs": "0", "file-system:rename-dir-limit": "0"}
    # prepare.sh of the README mounts with the same, by gcsfuse's flags.
    flags = re.search(r"gcsfuse (--.*) my-bucket /mnt/bucket", readme)[1].split()
    as_flags = {f"--{name.removeprefix('file-system:').replace(':', '-')}={value}" for name, value in settings.items()}
    assert set(flags) == {"--implicit-dirs", *as_flags}
    assert "implicit-dirs" in options


@pytest.mark.parametrize(
    ("flags", "hosts", "chips"),
    [
        (["--topology=2x2"], 1, 4),
        (["--topology=1x1"], 1, 1),
        (["--topology=2x4", "--chips_per_host=8"], 1, 8),
        (["--topology=2x4"], 2, 4),
        (["--accelerator=tpu-v5p-slice", "--topology=8x8x8"], 128, 4),
        (["--accelerator=tpu7x", "--topology=4x4x4"], 16, 4),
    ],
)
def test_hosts(flags, hosts, chips):
    manifest = made(*flags)
    assert job_of(manifest)["completions"] == hosts
    assert pod_of(manifest)["containers"][0]["resources"]["limits"] == {"google.com/tpu": chips}


def expand(text):
    """As Kubernetes expands `args` and `env`: $$ is a dollar, $(NAME) a variable (here: gone, to be seen)."""
    return re.sub(r"\$\$|\$\(([^)]*)\)", lambda match: "$" if match[0] == "$$" else "", text)


def test_arguments_arrive_as_they_were_given():
    hard = [
        "--set",
        'TEXT=it\'s "two"  spaces',
        "$HOME $(id) $$ `id` \\n",
        "a\nb\n",
        "",
        "yes",
        "1e3",
        "null",
        "- x: {y}",
        "#",
        "ключ 密码",
    ]
    container = pod_of(rendered("--env=FLAGS=--a='$(b)' c", run=[*RUN, *hard]))["containers"][0]
    assert [expand(argument) for argument in container["args"]] == [*RUN, *hard]
    assert expand({entry["name"]: entry["value"] for entry in container["env"]}["FLAGS"]) == "--a='$(b)' c"


@pytest.mark.parametrize(
    ("flags", "run", "message"),
    [
        (["--topology=16x16x16"], RUN, "--topology '16x16x16': tpu-v5-lite-podslice has 2 dimensions, as 4x4"),
        (["--topology=16x17"], RUN, "--topology 16x17: there is no such slice of tpu-v5-lite-podslice; there are 1x1, 2x2, 2x4, 4x4"),
        (["--accelerator=tpu-v6e-slice", "--topology=4x2"], RUN, "--topology 4x2: there is no such slice of tpu-v6e-slice"),
        (
            ["--accelerator=tpu-v5p-slice", "--topology=4x4x6"],
            RUN,
            "there is no such slice of tpu-v5p-slice; a side is 1, 2 or a multiple of 4",
        ),
        (["--topology=4x4", "--chips_per_host=3"], RUN, "--topology 4x4: 16 chips are not a multiple of 3 a host"),
        (["--topology=2x2", "--slices=2"], RUN, "--slices 2: several slices must have several hosts each, and 2x2 has one"),
        (["--name=Run_1"], RUN, "--name 'Run_1': must be at most 40 small letters"),
        (["--slices=0"], RUN, "--slices: '0' must be a whole number, 1 or more"),
        (["--restart_on=0"], RUN, "--restart_on: '0' must be exit codes from 1 to 255"),
        (["--accelerator=tpu-v5e"], RUN, "invalid choice: 'tpu-v5e'"),
        (["--node_selector=pool"], RUN, "--node_selector: 'pool' must be NAME=VALUE"),
        ([], [], "no arguments for `xretrieval train`"),
        ([], ["--set", "WORKDIR=run1"], "no WORKDIR under /bucket among the arguments"),
        ([], [*RUN, f"--gin.x='{TOKEN}'"], "argument 4 looks like a credential"),
        (["--env=API_KEY=x"], RUN, "argument 4 looks like a credential"),
        (["--env=A=b", "--env=SERVICE_PRIVATE_KEY=x"], RUN, "argument 5 looks like a credential"),
        (["--token=x"], RUN, "unrecognized arguments"),
    ],
)
def test_what_is_refused(capsys, flags, run, message):
    with pytest.raises(SystemExit, match="2"):
        render.main([*FLAGS, *flags, "--", *run])
    said = capsys.readouterr().err
    assert message in said
    assert TOKEN not in said


def test_the_image_is_made_of_the_tested_set():
    lines = [line for line in (ROOT / "launch/gke/Dockerfile").read_text().splitlines() if line and not line.startswith("#")]
    version = re.match(r"FROM python:(3)\.(\d+)-slim", lines[0])
    assert f"--constraint constraints/py{version[1]}{version[2]}.txt --editable" in lines[3]
    assert (ROOT / f"constraints/py{version[1]}{version[2]}.txt").exists()
