"""What ends and what restarts a run on GKE: the manifest's rules, as Kubernetes and the JobSet controller read them."""

import re

import pytest
from manifests import job_of, made, manifest_of_the_readme, pod_of

from launch.gke import render
from xretrieval import watch

DISRUPTED = {"type": "DisruptionTarget", "status": "True"}


def action(job, exit_code, disrupted):
    """What the pod failure policy does with one pod that has failed: the first rule that fits. Of a pod whose node is gone no exit code is known."""
    for rule in job["podFailurePolicy"]["rules"]:
        codes = rule.get("onExitCodes")
        if codes and exit_code is not None and (exit_code in codes["values"]) == (codes["operator"] == "In"):
            return rule["action"]
        if disrupted and DISRUPTED in rule.get("onPodConditions", []):
            return rule["action"]
    return "Count"


def outcome(manifest, *looks):
    """What Kubernetes and the JobSet controller make of a slice whose pods end so, by their documentation.

    Each look is what the Job controller finds at a time: (exit code, whether disrupted) of every pod that has failed by then. The first look with
    a failed pod decides; FailJob for any of them comes before what counts.
    """
    job = job_of(manifest)
    assert job["backoffLimit"] == 0, "the first failure that counts fails the job"
    actions = {action(job, *pod) for pod in next(filter(None, looks))}
    reason = "PodFailurePolicy" if "FailJob" in actions else "BackoffLimitExceeded"
    for rule in manifest["spec"]["failurePolicy"]["rules"]:
        if not rule["onJobFailureReasons"] or reason in rule["onJobFailureReasons"]:
            return rule["action"]
    return "RestartJobSet"


def restarting_codes(manifest):
    return [code for code in range(1, 256) if outcome(manifest, [(code, False)]) == "RestartJobSet"]


def test_75_restarts_and_no_other_code():
    manifest = made()
    assert restarting_codes(manifest) == [75]
    # A node that is drained is no exit code: 137 is what is left of a pod that could not save in time.
    assert outcome(manifest, [(137, True)]) == "RestartJobSet"
    assert manifest["spec"]["failurePolicy"]["maxRestarts"] == 100
    told = made("--restart_on=134,75", "--max_restarts=3")
    assert restarting_codes(told) == [75, 134]
    assert told["spec"]["failurePolicy"]["maxRestarts"] == 3
    # The names that the API allows, and the rule on one container, or a sidecar's exit code would speak for the run.
    assert all(re.fullmatch(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"]) for rule in manifest["spec"]["failurePolicy"]["rules"])
    assert job_of(manifest)["podFailurePolicy"]["rules"][1]["onExitCodes"]["containerName"] == pod_of(manifest)["containers"][0]["name"]


GONE, PEER_LOST, FAILED = (None, True), (watch.PEER_LOST, False), (1, False)


@pytest.mark.parametrize(
    ("looks", "untold", "told"),
    [
        # A node dies: the others miss their peer, and Kubernetes finds out minutes later, just then, or before.
        ([[], [PEER_LOST] * 3, [PEER_LOST] * 3 + [GONE]], "FailJobSet", "RestartJobSet"),
        ([[PEER_LOST, GONE, PEER_LOST]], "FailJobSet", "RestartJobSet"),
        ([[GONE], [GONE] + [PEER_LOST] * 3], "RestartJobSet", "RestartJobSet"),
        # A node is preempted with a warning: SIGTERM to one, and all save.
        ([[(75, True)] + [(75, False)] * 3], "RestartJobSet", "RestartJobSet"),
        # A process fails, and the others miss it: its own code ends the run, whatever was told, unless it is seen too late.
        ([[PEER_LOST, FAILED, PEER_LOST]], "FailJobSet", "FailJobSet"),
        ([[PEER_LOST], [PEER_LOST, FAILED]], "FailJobSet", "RestartJobSet"),
    ],
)
def test_a_lost_node_restarts_for_sure_where_76_was_told(looks, untold, told):
    assert outcome(made(), *looks) == untold
    assert outcome(made("--restart_on=75,76"), *looks) == told


def test_the_readme_shows_how_lost_nodes_restart():
    assert restarting_codes(render.jobset(render.parse(manifest_of_the_readme()))) == [75, watch.PEER_LOST]
