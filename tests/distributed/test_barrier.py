"""A barrier that not all come to says who is missing."""

import processes


def test_a_barrier_names_those_that_are_missing(tmp_path):
    found = processes.run(3, "late", tmp_path, "late=(1, 2)", timeout=60)
    assert processes.codes(found) == [0] * 3, found[0].err
    said = found[0].out.splitlines()[-1]
    assert said.startswith("after 2 s at 'breakfast' there is still missing: process 1 on "), said
    assert ", process 2 on " in said
    assert said.endswith("; its log says what holds it")
