"""Seconds of a step by phase.

passes   what a pass of a model over tokens takes of a rank: arithmetic and memory traffic
traffic  bytes of each collective, by link
decode   seconds of an engine that samples responses of unequal lengths
timing   seconds of a step by phase, from all of them
"""
