"""A JobSet manifest for GKE: one training run on one or several TPU slices.

    python -m launch.gke.render --name run1 --image IMAGE --accelerator tpu-v5-lite-podslice --topology 16x16 --bucket BUCKET -- \\
        --gin_file=RUN.gin --set WORKDIR=/bucket/run1 | kubectl apply -f -

GKE itself tells each pod its place in the run (TPU_WORKER_ID, TPU_WORKER_HOSTNAMES and, for several slices, MEGASCALE_*), and JAX reads that; the
headless service behind the host names is made by the JobSet controller. Applied again, an unchanged manifest changes nothing; a run that has ended
is deleted (`kubectl delete jobset run1`) and applied again, and goes on from its last checkpoint.
"""

import argparse
import dataclasses
import math
import re
import sys
from collections.abc import Sequence

import yaml

PREEMPTED = 75
COORDINATOR_PORT = 8476  # that of xretrieval/joining.py; no other process of ours listens
CONTAINER = "train"
MOUNT = "/bucket"
# Every look-up asks the bucket: by default each host keeps for a minute, or for ever on large machines, what is there and what is not, and hosts would
# not agree on which steps there are. No renaming by copying: a step is committed by renaming its folder, which must be whole or not at all. A bucket with
# a hierarchical namespace renames folders itself, whatever the limit; another one refuses the first save.
MOUNT_OPTIONS = "implicit-dirs,metadata-cache:ttl-secs:0,metadata-cache:negative-ttl-secs:0,file-system:rename-dir-limit:0"
# Label of the nodes -> dimensions of its topologies.
ACCELERATORS = {"tpu-v4-podslice": 3, "tpu-v5-lite-podslice": 2, "tpu-v5p-slice": 3, "tpu-v6e-slice": 2, "tpu7x": 3}
# Slices of v5e and v6e that GKE has node pools for. Those of three dimensions have no such list: see `problem`.
FLAT_TOPOLOGIES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
# Shapes of tokens and keys, a password in a URL, and names that speak of one. The same is in tpu_vm_settings.sh; tests/launch/test_credentials.py
# holds both against one list.
CREDENTIAL = re.compile(
    r"(hf_|gh[pousr]_|github_pat_|glpat-|xox[bp]-)[\w-]{10,}|AIza[\w-]{20,}|A[KS]IA[A-Z0-9]{12,}|ya29\.|sk-[\w-]{16,}|PRIVATE KEY-----"
    r"|://[^/@\s]*:[^/@\s]+@"
    r"|^(--?|--env=|--gin\.|--set=)?[\w.-]*(?i:token|secret|credentials?|pass(word|wd|phrase)|[_-](pass|pwd)"
    r"|(api|access|account|auth|encryption|master|private|secret|signing|ssh)[_-]?keys?)(=|$)"
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a manifest is rendered from.

    Attributes:
      name: of the JobSet, its pods and its service.
      image: with this repository in its working folder (launch/gke/Dockerfile).
      accelerator, topology: the node pool's labels; a slice is a node pool.
      chips_per_host: chips of a node; of a topology that is smaller, all of its chips.
      slices: how many.
      bucket: Cloud Storage bucket with a hierarchical namespace, mounted at /bucket: what all pods read and where WORKDIR is.
      service_account: of Kubernetes, which may use the bucket by Workload Identity: no key is needed anywhere.
      secret: a Kubernetes secret whose entries become variables of the environment; its values are never in a manifest.
      node_selectors: further labels that the nodes must have.
      environment: further variables, none of them secret.
      spot: on Spot nodes.
      restart_on: exit codes after which all pods begin again. Without 76 (a peer was lost) a node that dies mostly ends the run, see `_pod_rules`.
      max_restarts: how often, disruptions included.
      grace_seconds: from SIGTERM to SIGKILL: the time that a save may take. Spot nodes give 25 s, whatever stands here.
      arguments: of `xretrieval train`.
    """

    name: str
    image: str
    accelerator: str
    topology: str
    bucket: str
    arguments: Sequence[str]
    chips_per_host: int = 4
    slices: int = 1
    service_account: str | None = None
    secret: str | None = None
    node_selectors: Sequence[tuple[str, str]] = ()
    environment: Sequence[tuple[str, str]] = ()
    spot: bool = False
    restart_on: Sequence[int] = (PREEMPTED,)
    max_restarts: int = 100
    grace_seconds: int = 300

    @property
    def chips(self) -> int:
        return math.prod(int(side) for side in self.topology.split("x"))

    @property
    def hosts(self) -> int:
        return max(1, self.chips // self.chips_per_host)


def problem(settings: Settings) -> str | None:
    """What is wrong with the settings, and which flag says so."""
    dimensions = ACCELERATORS[settings.accelerator]
    if not re.fullmatch("x".join([r"[1-9]\d*"] * dimensions), settings.topology):
        return f"--topology {settings.topology!r}: {settings.accelerator} has {dimensions} dimensions, as {'x'.join(['4'] * dimensions)}"
    if dimensions == 2 and settings.topology not in FLAT_TOPOLOGIES:
        return f"--topology {settings.topology}: there is no such slice of {settings.accelerator}; there are {', '.join(FLAT_TOPOLOGIES)}"
    # A host has 2x2x1 chips, a cube 4x4x4: larger slices are made of cubes.
    if dimensions == 3 and any(side > 2 and side % 4 for side in map(int, settings.topology.split("x"))):
        return f"--topology {settings.topology}: there is no such slice of {settings.accelerator}; a side is 1, 2 or a multiple of 4"
    if settings.chips > settings.chips_per_host and settings.chips % settings.chips_per_host:
        return f"--topology {settings.topology}: {settings.chips} chips are not a multiple of {settings.chips_per_host} a host"
    if settings.slices > 1 and settings.hosts == 1:
        return f"--slices {settings.slices}: several slices must have several hosts each, and {settings.topology} has one"
    # The longest name that is made of it, NAME-slice-NN-NNN and five letters of a pod, is a DNS label.
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", settings.name):
        return f"--name {settings.name!r}: must be at most 40 small letters, digits and hyphens, and begin with a letter"
    if not settings.arguments:
        return "no arguments for `xretrieval train`; give them after --"
    if not any(re.search(rf"WORKDIR=['\"]?{MOUNT}/", argument) for argument in settings.arguments):
        return (
            f"no WORKDIR under {MOUNT} among the arguments, as --set WORKDIR={MOUNT}/{settings.name}: checkpoints would end with the pods"
        )
    words = [*settings.arguments, *(f"{name}={value}" for name, value in settings.environment)]
    for position, word in enumerate(words, 1):
        if CREDENTIAL.search(word):
            return (
                f"argument {position} looks like a credential: it would stand in the manifest; put it in a Kubernetes secret for --secret"
            )
    return None


def jobset(settings: Settings) -> dict:
    """The manifest, as kubectl takes it."""
    job = {
        # Every pod of a slice, or none: the first that fails ends the job, and the JobSet decides what then.
        "backoffLimit": 0,
        "completionMode": "Indexed",
        "completions": settings.hosts,
        "parallelism": settings.hosts,
        "podFailurePolicy": {"rules": _pod_rules(settings)},
        "template": {"metadata": {"annotations": {"gke-gcsfuse/volumes": "true"}}, "spec": _pod(settings)},
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": settings.name,
            # A slice is a node pool: its pods go to one and the same, and no other slice's pods do.
            "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"},
        },
        "spec": {
            # The headless service: pods have names before they are ready, for the first one waits for the others.
            "network": {"enableDNSHostnames": True, "subdomain": settings.name, "publishNotReadyAddresses": True},
            "failurePolicy": {"maxRestarts": settings.max_restarts, "rules": _jobset_rules()},
            "replicatedJobs": [{"name": "slice", "replicas": settings.slices, "template": {"spec": job}}],
        },
    }


def _pod_rules(settings: Settings) -> list[dict]:
    """In order, the first that fits: a disrupted pod counts against `backoffLimit`, another exit code fails the job by this policy; one of
    `restart_on` fits no rule, so it counts as well.

    The first pods that are seen to have failed decide, and among these FailJob. Where a node dies without a word, they are the others: they miss
    their peer within 100 s and end with 76, while the dead node's pod is marked as disrupted after five minutes, by Kubernetes' defaults."""
    return [
        # The node is preempted, drained or gone: whatever the process still came to, it is not its fault.
        {"action": "Count", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": "FailJob", "onExitCodes": {"containerName": CONTAINER, "operator": "NotIn", "values": sorted(set(settings.restart_on))}},
    ]


def _jobset_rules() -> list[dict]:
    """A job that failed by counting begins again, with all others; one that failed for any other reason ends the run."""
    return [
        {"name": "preempted", "action": "RestartJobSet", "onJobFailureReasons": ["BackoffLimitExceeded"]},
        {"name": "failed", "action": "FailJobSet", "onJobFailureReasons": []},
    ]


def _pod(settings: Settings) -> dict:
    selectors = {"cloud.google.com/gke-tpu-accelerator": settings.accelerator, "cloud.google.com/gke-tpu-topology": settings.topology}
    tolerations = [{"key": "google.com/tpu", "operator": "Exists", "effect": "NoSchedule"}]
    if settings.spot:
        selectors["cloud.google.com/gke-spot"] = "true"
        tolerations.append({"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"})
    fuse = {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": {"bucketName": settings.bucket, "mountOptions": MOUNT_OPTIONS}}
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": settings.grace_seconds,
        **({"serviceAccountName": settings.service_account} if settings.service_account else {}),
        "nodeSelector": {**selectors, **dict(settings.node_selectors)},
        "tolerations": tolerations,
        "containers": [_container(settings)],
        "volumes": [{"name": "bucket", "csi": fuse}],
    }


def _container(settings: Settings) -> dict:
    # A TPU that does not start is an error then, not a run on the CPU; JAX's own port has changed before, and firewalls know this one.
    fixed = {"JAX_PLATFORMS": "tpu,cpu", "JAX_COORDINATOR_PORT": str(COORDINATOR_PORT), "PYTHONUNBUFFERED": "1"}
    variables = {**fixed, **{name: _verbatim(value) for name, value in settings.environment}}
    chips = {"google.com/tpu": min(settings.chips, settings.chips_per_host)}
    return {
        "name": CONTAINER,
        "image": settings.image,
        # No shell: arguments arrive as they stand.
        "command": ["xretrieval", "train"],
        "args": [_verbatim(argument) for argument in settings.arguments],
        "env": [{"name": name, "value": value} for name, value in variables.items()],
        **({"envFrom": [{"secretRef": {"name": settings.secret}}]} if settings.secret else {}),
        "ports": [{"name": "coordinator", "containerPort": COORDINATOR_PORT}],
        "resources": {"requests": dict(chips), "limits": dict(chips)},
        "volumeMounts": [{"name": "bucket", "mountPath": MOUNT}],
    }


def _verbatim(text: str) -> str:
    """Kubernetes reads $(NAME) as a variable, and $$ as a dollar."""
    return text.replace("$", "$$")


def _pair(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not (name and separator):
        raise argparse.ArgumentTypeError(f"{text!r} must be NAME=VALUE")
    return name, value


def _codes(text: str) -> list[int]:
    codes = [int(code) if code.isdigit() else 0 for code in text.split(",")]
    if not all(1 <= code <= 255 for code in codes):
        raise argparse.ArgumentTypeError(f"{text!r} must be exit codes from 1 to 255, as 75 or 75,76")
    return codes


def _at_least_one(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, 1 or more")
    return int(text)


def parse(argv: Sequence[str]) -> Settings:
    """Settings of a command line; what is wrong ends the program with code 2 and a line that names the flag."""
    parser = argparse.ArgumentParser("python -m launch.gke.render", description="Prints a JobSet manifest.", allow_abbrev=False)
    defaults = {field.name: field.default for field in dataclasses.fields(Settings)}
    for name in ("name", "image"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--bucket", required=True, help="with a hierarchical namespace (launch/README.md)")
    parser.add_argument("--accelerator", required=True, choices=ACCELERATORS, help="label gke-tpu-accelerator of the nodes")
    parser.add_argument("--topology", required=True, help="label gke-tpu-topology of the nodes, as 16x16")
    parser.add_argument("--chips_per_host", type=_at_least_one, default=defaults["chips_per_host"], help="of a node (4)")
    parser.add_argument("--slices", type=_at_least_one, default=defaults["slices"])
    parser.add_argument("--service_account", help="a Kubernetes service account that may use the bucket")
    parser.add_argument("--secret", help="a Kubernetes secret whose entries become variables of the environment")
    parser.add_argument("--node_selector", dest="node_selectors", type=_pair, action="append", default=[], metavar="LABEL=VALUE")
    parser.add_argument("--env", dest="environment", type=_pair, action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--spot", action="store_true")
    parser.add_argument("--restart_on", type=_codes, default=[PREEMPTED], metavar="CODES", help="exit codes that begin again (75)")
    parser.add_argument("--max_restarts", type=_at_least_one, default=defaults["max_restarts"])
    parser.add_argument("--grace_seconds", type=_at_least_one, default=defaults["grace_seconds"], help="a save may take so long (300)")
    parser.add_argument("arguments", nargs="*", help="of `xretrieval train`, after --")
    settings = Settings(**vars(parser.parse_args(argv)))
    found = problem(settings)
    if found:
        parser.error(found)
    return settings


def main(argv: Sequence[str]) -> None:
    """Prints the manifest."""
    yaml.safe_dump(jobset(parse(argv)), sys.stdout, sort_keys=False, width=1000, allow_unicode=True)


if __name__ == "__main__":
    main(sys.argv[1:])
