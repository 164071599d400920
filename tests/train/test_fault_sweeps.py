"""Small forms of the sweeps of `make bench NAME=faults`, whose full counts are `slow` here."""

import pytest

from benchmarks import faults_flips, faults_kill, faults_nan


@pytest.mark.parametrize("kills", [3, pytest.param(100, marks=pytest.mark.slow)])
def test_killed_around_saves_it_ends_as_it_would_have(tmp_path, kills):
    found = faults_kill.sweep(tmp_path, kills)
    assert (found.kills, found.resumed) == (kills, kills)
    assert found.in_a_save > 0
    assert found.ends == found.bitwise > 0


@pytest.mark.slow
def test_a_flipped_bit_in_any_file_is_found(tmp_path):
    found = faults_flips.sweep(tmp_path, 20)
    assert found.files >= 10
    assert found.found == found.flips == found.files * 20


@pytest.mark.slow
def test_nothing_that_is_not_finite_is_in_a_checkpoint(tmp_path):
    found = faults_nan.sweep(tmp_path)
    assert found.stopped == found.injected == 11
    assert found.checkpoints_not_finite == 0
