"""Jobs on a real Slurm of two nodes, started by the tests themselves."""
