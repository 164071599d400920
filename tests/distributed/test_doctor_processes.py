"""`xretrieval doctor` on two processes: what differs between them is said before a start, and none waits for the other."""

import processes


def said(found):
    """{(name, processes): (OK or WRONG, text)}."""
    lines = [line.partition(": ") for line in found[0].out.splitlines() if line.startswith(("OK ", "WRONG "))]
    return {head[7:]: (head[:5].strip(), text) for head, _, text in lines}


def test_two_processes_that_fit_together_are_ok(tmp_path):
    found = processes.run(2, "examine", tmp_path, timeout=100)
    assert processes.codes(found) == [0, 0], found[0].out + found[0].err
    lines = said(found)
    assert {state for state, _ in lines.values()} == {"OK"}
    assert lines["processes"][1].startswith("2, from process 0 on")
    assert lines["workdir"][1] == f"{tmp_path}/train: what is written and removed is seen; folders can be renamed"
    assert list((tmp_path / "train").iterdir()) == []


def test_what_differs_on_one_process_is_wrong_and_all_else_is_still_looked_at(tmp_path):
    other = {
        "configuration": "train.num_steps = 4\ntrain.seed = 1\n",
        "microbatches": 2,
        "mesh_replica": 2,
        "workdir": "elsewhere",
        "ahead": 60.0,
    }
    found = processes.run(2, "examine", tmp_path, timeout=100, variables=lambda process: {"OTHER": repr(other)} if process else {})
    assert processes.codes(found) == [1, 1], found[0].out + found[0].err
    lines = said(found)
    state, text = lines["configuration [1]"]
    assert state == "WRONG"
    assert text.endswith("train.seed = 1 is not process 0's; train.seed = 0 is process 0's; this must be the same everywhere")
    assert lines["configuration [0]"][0] == "WRONG"
    assert lines["mesh [0]"] == ("WRONG", "replica 1 x data 2 x model 1, 4 pairs a data shard; this must be the same everywhere")
    assert lines["mesh [1]"] == (
        "WRONG",
        "replica 2 x data 1 x model 1, 4 pairs a data shard in 2 microbatches; this must be the same everywhere",
    )
    for me, place in enumerate(("train", "elsewhere")):
        state, text = lines[f"workdir [{me}]"]
        assert state == "WRONG"
        assert text.startswith(f"{tmp_path}/{place}: what process {1 - me} on ")
        assert "wrote is not seen here; give a folder that all hosts share" in text
    state, text = lines["clocks"]
    assert state == "WRONG"
    assert text.startswith("process 1 on ")
    assert "is 60.0 s ahead of process 0 on " in text or "is 59.9 s ahead of process 0 on " in text
    assert lines["reduce-scatter of 4,096 KiB"] == ("OK", "equal to NumPy")
