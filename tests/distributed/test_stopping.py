"""All stop together, or one fails while they do: then none waits for it."""

import processes
import pytest


def test_all_that_are_asked_to_stop_leave_together(tmp_path):
    assert processes.codes(processes.run(2, "stop", tmp_path, timeout=60)) == [75, 75]


@pytest.mark.parametrize("fails, code, text", [("RuntimeError", 1, "the device is broken"), ("second Ctrl-C", 130, "KeyboardInterrupt")])
def test_one_that_fails_while_all_stop_ends_the_others_with_its_name(tmp_path, fails, code, text):
    only = {"variables": lambda process: {"OTHER": repr({"fails": fails})} if process == 1 else {}}
    found = processes.run(2, "stop", tmp_path, timeout=60, **only)
    assert processes.codes(found) == [76, code], found[0].err
    assert "process 0 on" in found[0].err
    assert "stops, because process 1 on" in found[0].err
    assert f"stopped: {text}" in found[0].err
    assert found[0].seconds - found[1].seconds < 10, "a word, not the time limit of a barrier"
