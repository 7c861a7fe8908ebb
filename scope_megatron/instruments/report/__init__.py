"""A run drawn: its curves, a step's time line, one page with all, and whether SCOPE fits its data.

figure     report.png: the curves of a finished or running run
timeline   timeline.png: what each rank did in one step
webpage    report.html: the same with advice, settings and responses, in one file
fit        what SCOPE has to work on: spread of its weights, shares of groups, correlations
draw       all of them at a run's end
"""
