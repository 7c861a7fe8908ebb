"""Hostile programs in the sandbox of the code verifier."""
