"""Takes packed batches apart again, one token at a time, as their description says and not as `packing.py` does it."""


def pairs(batch, shards, num_segments):
    """[(left tokens, right tokens, pair ID)], lists of ints, in the order of the batch."""
    rows, size = len(batch["tokens"]) // shards, len(batch["pair_id"]) // shards

    def side(shard, slot):
        row, segment = shard * rows + slot // num_segments, slot % num_segments + 1
        return [int(token) for token, owner in zip(batch["tokens"][row], batch["segment_ids"][row], strict=True) if owner == segment]

    return [
        (side(i // size, int(batch["left"][i])), side(i // size, int(batch["right"][i])), int(batch["pair_id"][i]))
        for i in range(len(batch["pair_id"]))
    ]


def check_rows(batch):
    """Segments 1, 2, … of each row lie side by side from its first token on, positions restart in each, and the rest is zeros."""
    for tokens, segments, positions in zip(batch["tokens"], batch["segment_ids"], batch["positions"], strict=True):
        used = int((segments > 0).sum())
        expected, position = 1, 0
        for i in range(used):
            if i and segments[i] != segments[i - 1]:
                expected, position = expected + 1, 0
            assert (segments[i], positions[i]) == (expected, position)
            position += 1
        assert not tokens[used:].any()
        assert not segments[used:].any()
        assert not positions[used:].any()
