"""Sections of the configuration that are long enough for a file of their own.

section      the base of every section: no unknown keys, no conversions, frozen
algorithm    `algorithm`
data         `data` and its sets
model        `model` and `model.teachers`
objective    `objective`
parallel     `parallel`
rollout      `rollout` and `rollout.engine`
teacher      `teacher`
verifier     `verifier` and `verifier.code`
faults       `faults`
logging      `logging` and `logging.rollouts`
profile      `profile`
read_with    settings that are read only with another one
presets      settings of several sections that one setting stands for
"""
