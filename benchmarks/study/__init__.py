"""Does SCOPE hold at small scale? Methods, tasks and seeds in the real trainer; tables and figures.

methods     every method as overrides of one configuration
cells       which runs a profile has, in the order in which they are made
stage       a task's data, models, responses of its teacher
settings    the configuration of a run
runner      a run from its settings to its row, in a fork of ../ready.py
rows        the file of finished runs, one JSON object a line
estimates   Avg@k and Pass@k with paired bootstrap intervals over seeds and problems
tables      Markdown of table 1, differences, weights and entropies, learning rates
figures     figures 3, 4, 5 and 6 as PNG and as data

    python -m benchmarks.study --profile small|full|hard|control
"""
