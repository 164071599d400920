"""From unit records to batches of token pairs. The only folder, with `tasks`, that may import seqio or TensorFlow."""
