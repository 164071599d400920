from fuzz_audio import LIMITS, fuzz


def test_mutated_and_forged_files_end_as_samples_or_as_one_line(tmp_path):
    found = fuzz(150, seed=0, folder=tmp_path)
    assert not found.wrong
    assert found.counts.total() > 200
    assert found.counts["samples"] > 20
    assert found.counts["error: damaged"] > 50
    assert found.counts["error: died"] == 0
    assert found.decoder_mib < LIMITS.max_memory_bytes / 2**20
    assert found.parent_mib < 200  # a result of 600 s is 37 MiB, and there are up to five
