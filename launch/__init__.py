"""How runs are started: on one machine, on TPU VMs, on GKE."""
