"""The retriever and the vector index."""
