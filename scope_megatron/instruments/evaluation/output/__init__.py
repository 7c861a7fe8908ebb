"""Output of an evaluation: numbers, tables, figures.

results    numbers of every set, as results.json
report     writes them and prints them
table      the same as Markdown
figure     Pass@k against k
"""
