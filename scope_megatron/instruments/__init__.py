"""What looks at runs and models, or plans them. It imports the trainer, which never imports it.

commands     subcommands of `scope-megatron` that do not stand in cli.py
plan         memory and time of a run, known beforehand
evaluation   models judged on sets of problems, and compared
report       figures, pages and advice of a run
view         a local page that follows runs
doctor       what of this machine works
"""
