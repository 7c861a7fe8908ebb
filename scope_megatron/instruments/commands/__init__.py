"""Commands of `scope-megatron` that do not stand in cli.py itself.

common        a user's errors on one line; the start of the ranks
evaluation    evaluate, regrade, compare
planning      plan
diagnosis     diagnose
view          view
"""
