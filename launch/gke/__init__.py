"""A run on GKE: its manifest and its image."""
