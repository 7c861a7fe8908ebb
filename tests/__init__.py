"""Unit, distributed (several processes), end to end, slurm (a real one), faults (injected), gpu."""
