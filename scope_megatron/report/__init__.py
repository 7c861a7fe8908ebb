"""Reporting of a run: metrics, lines on a terminal, a figure.

metrics    sums, means and phases of a step, reduced over ranks
logger     the files they go to: metrics.jsonl, TensorBoard, W&B
console    progress and tables on the terminal
rollouts   responses on disk: a Parquet file per step
health     advice: rules over the metrics, each with its source
fit        what SCOPE has to work on: spread of its weights, shares of groups, correlations
events     what happened to a run and when
header     the lines that a run begins with
webpage    report.html: the same with advice, settings and responses, in one file
overlap    what was hidden behind other work: shares, defined once
timeline   timeline.png: what each rank did in one step
figure     report.png: the curves of a finished or running run
"""
