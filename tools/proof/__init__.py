"""What only a GPU can show, in parts that run by themselves; rehearsed on a CPU at toy size.

../gpu_proof.py  the command: which parts, rehearsal or the real thing, exit status
registry.py      the parts: what each shows, needs and may take
parts/           one file per subject, one function per part
record.py        checks, targets and figures that a part writes down
child.py         the process in which a part runs
runner.py        starts the processes, ends those that hang, collects what they wrote
machine.py       chip, driver, versions; which packages are there
models.py        random models of a given shape as Hugging Face directories
trainer.py       what the parts ask of the trainer
measure.py       times, rates and memory
page.py          the result as JSON and as Markdown
"""

from __future__ import annotations
