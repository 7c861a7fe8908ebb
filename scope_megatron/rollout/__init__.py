"""Prompts in, graded responses out.

sample       responses of one data-parallel replica from all engines on its ranks
verify/      verifiers: which responses are correct
"""
