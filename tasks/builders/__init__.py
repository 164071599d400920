"""TFDS builders over the same readers as `xretrieval data manifest`, for pipelines that begin with TensorFlow Datasets.

The corpora are the user's to download: each builder reads `manual_dir`, and downloads nothing.
"""
