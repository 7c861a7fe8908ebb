"""Prompts in, graded responses out.

prompts      datasets: rows as tokenised prompts, in a resumable order
tokenizer    text to token ids and back
sample       responses of one data-parallel replica from all engines on its ranks
verify/      verifiers: which responses are correct
"""
