"""SeqIO tasks and mixtures: what an example is, for each corpus."""

import os


def _load_tensorflow() -> None:
    """Loads TensorFlow without its first words, which no log level stops, and without its devices: the accelerator is JAX's."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        import tensorflow as tf

        tf.config.set_visible_devices([], "GPU")
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


_load_tensorflow()
