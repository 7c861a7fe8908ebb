"""Tasks for studies on two cores: problems, their verifiers, tiny models that know a part of them.

family      what a task is: drawing problems, solving them, the part its teacher never sees
countdown   reach a target with given numbers: many right answers
walk        get from one number to another in worked steps: routes of varying length
chains      the quickstart's arithmetic, with chains longer than its models have seen
table       the tasks by name
write       a task's files: rollouts, evaluation, tuning, supervised rows of student and teacher
models      a task's student and teacher, by supervised training from random parameters
spread      the numbers that tell whether SCOPE's weights have work on a task
"""
