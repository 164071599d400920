"""Draws that depend on a key alone, so that order, workers and restarts cannot change them."""

import hashlib


def draw(*key: object) -> int:
    """A whole number from 0 to 2**256 - 1; take choices from it by `divmod`."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, key)).encode()).digest(), "big")
