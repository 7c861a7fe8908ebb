"""The frozen models beside the student: its teachers, or grpo's reference.

model       a frozen model on this rank
build       frozen models from their checkpoints, each in its layout
output      a teacher's output weight as the student is cut
travel      responses to where a model in its own layout scores them, scores and states back
"""
