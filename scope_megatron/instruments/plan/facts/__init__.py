"""Facts that a plan rests on.

known    the built-in list of well-known models
shapes   a model's sizes by directory, file, Hub name or built-in name; its parameters per rank
figures  what a GPU has, with the source of each figure; efficiencies
"""
