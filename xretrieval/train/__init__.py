"""Loss, step, loop, checkpoints."""
