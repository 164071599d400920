"""Embedding a finite set of sequences, retrieval metrics, the report."""
