"""Validation on several processes of other records is refused before any waits for another."""

import processes
import pytest


@pytest.mark.parametrize("count, victim", [(2, 1), pytest.param(4, 2, marks=pytest.mark.slow)])
def test_a_process_with_fewer_records_is_named_before_the_first_is_embedded(tmp_path, count, victim):
    only = {"variables": lambda process: {"OTHER": repr({"records": 60})} if process == victim else {}}
    found = processes.run(count, "validation", tmp_path, timeout=60, **only)
    assert processes.codes(found) == [2] * count, found[0].err
    assert all(
        f"process {victim} on" in one.err and "another validation data in units/validation than the other" in one.err for one in found
    )


@pytest.mark.slow
def test_processes_with_the_same_records_come_to_an_end(tmp_path):
    assert processes.codes(processes.run(2, "validation", tmp_path)) == [0, 0]
