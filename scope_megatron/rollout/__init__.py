"""Prompts in, graded responses out.

sample       responses of one data-parallel replica from all engines on its ranks
statistics   Avg@k, both estimators of Pass@k, bootstrap
grading      responses graded while others are still sampled
verify/      verifiers: which responses are correct
"""
