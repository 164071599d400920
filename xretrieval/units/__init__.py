"""From sound to unit IDs: front end, k-means, the unit tokenizer artefact, bulk extraction."""
