"""One file a corpus: from its files as they are published to utterances, one at a time, and `writing.py`, which makes a manifest of them."""
