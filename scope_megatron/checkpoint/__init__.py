"""Checkpoints of a run: complete or absent on disk, proven by checksums, loadable at any layout.

state       what a checkpoint holds: student, optimizer, scheduler, progress; save and load
saver       when a run saves, in the background or not; ratings, retention
folder      output_dir/checkpoints: names, the newest, the best, what may be removed
manifest    SHA-256 of every file, written last and checked first
snapshot    copies on the host of what a background save writes while training goes on
arena       the host memory of those copies: one piece, which stays
"""
