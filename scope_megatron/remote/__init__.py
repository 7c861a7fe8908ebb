"""Engines on ranks of their own: what joins the ranks that train and those that only sample.

messages      what the two kinds tell each other
post          connections between a replica's first rank and every sampling rank
bridge        the process group of both kinds, over which tensors are sent
parameters    the student's parameters on their way to the engines, both ends
inflight      the batch in flight as a part of a checkpoint
carry         groups that a step leaves for the next one, and the record of them
collect       graded responses gathered for the replica that asked for them
"""
