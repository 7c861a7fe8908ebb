"""What a run writes down while it trains: metrics, responses, events; lines on a terminal.

metrics    sums, means and phases of a step, reduced over ranks
logger     the files they go to: metrics.jsonl, TensorBoard, W&B
console    progress and tables on the terminal
rollouts   responses on disk: a Parquet file per step
health     advice while a run trains: rules over the metrics, each with its source
events     what happened to a run and when
header     the lines that a run begins with
overlap    what was hidden behind other work: shares, defined once
"""
