"""Several processes with gloo: layouts give the same numbers, kills leave whole checkpoints."""
