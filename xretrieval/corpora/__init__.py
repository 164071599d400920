"""From corpora as they lie on disk to manifests and samples."""
