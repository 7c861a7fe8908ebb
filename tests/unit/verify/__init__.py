"""Verifiers, each on right, wrong and broken responses."""
