"""The frozen models beside the student: its teachers, or grpo's reference.

model       a frozen model on this rank, built from its checkpoint
"""
