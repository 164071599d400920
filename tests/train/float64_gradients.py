"""Gradients of whole batches and of microbatches in float64, side by side: `python float64_gradients.py`, a JSON object of the largest difference of each case.

In float32, sums in another order differ by some 1e-6 of a gradient, more on more devices, and would hide a term that is missing by as much. So every
float32 of the package is made float64 here, before it is imported; this is a process of its own.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np


def difference(parts, whole):
    """The largest, of any parameter, in the norm of its gradient."""
    pairs = list(zip(jax.tree.leaves(parts[0]), jax.tree.leaves(whole[0]), strict=True))
    assert all(x.dtype == y.dtype == np.float64 for x, y in pairs)
    return max(float(np.linalg.norm(x - y) / max(np.linalg.norm(y), 1e-30)) for x, y in pairs)


def main():
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_enable_x64", True)
    jnp.float32 = jnp.float64
    from train.test_microbatches import gradients

    from xretrieval.model.tower import ComputeConfig
    from xretrieval.train.trainable import TrainableConfig

    plain, again = ComputeConfig(), ComputeConfig(remat=True)
    for compute in (plain, again):
        object.__setattr__(compute, "dtype", "float64")  # which a run may not have
    adapters = {"trainable": TrainableConfig("lora", top_layers=2, lora_rank=4), "compute": again}
    one = gradients(1, compute=plain)
    found = {
        "4 parts, 1 device": difference(gradients(4, compute=plain), one),
        "2 parts, 8 devices, model 2": difference(gradients(2, 8, 2, compute=plain), gradients(1, 8, 2, compute=plain)),
        "2 parts on 8 devices, beside 1 device": difference(gradients(2, 8, compute=plain), one),
        "2 parts, adapters, remat": difference(gradients(2, **adapters), gradients(1, **adapters)),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
