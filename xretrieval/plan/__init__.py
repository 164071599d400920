"""What a run would need on a TPU pod, compiled on a machine without one: memory, operations, collectives, time at best."""
