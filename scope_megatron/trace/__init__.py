"""A trace: what each rank did when, in the form that Perfetto and chrome://tracing open.

spans    spans of time on this rank: begun and ended anywhere in the package, kept for some steps
clock    one clock for all ranks: exact on a node, measured between nodes
files    a file per rank, whole after every write; all of them in one; read again as spans
"""
