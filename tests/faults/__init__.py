"""Faults put into real runs: `python tests/faults/run.py` plays them all."""
