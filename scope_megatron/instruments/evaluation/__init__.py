"""Models judged: responses to sets of problems, Avg@n and Pass@k, and pairs of models compared.

options       the command line, with or without a configuration -> settings
rules         rules that join settings, models and sets
settings      everything that one evaluation is asked for
source        what --model names: a Hugging Face directory, a checkpoint, a run
problems      the sets, tokenised
run           from the first to the last sample
ranks         its processes
grader        grades and writes samples beside the engine
samples       the samples on disk: resumable, sorted at the end
output/       results.json, tables and the figure
regrade       the same samples under another verifier
compare       two evaluations problem by problem
paired        paired tests of two evaluations
"""
