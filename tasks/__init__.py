"""SeqIO tasks and mixtures: what an example is, for each corpus."""

from xretrieval import stderr

# TensorFlow's first words no log level stops; and its devices are JAX's.
with stderr.redirected():
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
