"""Each file compares one part with a peer in the same run: `make bench NAME=search JSON=search.json`."""
