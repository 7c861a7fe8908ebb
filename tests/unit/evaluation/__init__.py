"""Evaluation: options, samples on disk, statistics, comparison."""
