"""Rows in, tokenised prompts out, in a resumable order.

tokenizer    text to token ids and back
rows         what a row holds, and when it cannot be used
code_tests   tests of programs, as datasets have them
columns      other people's columns as ours: mappings, functions, filters
readers      files, folders and Hub data sets as chunks of raw rows
tokenise     a chunk of raw rows as prompts in columns
crew         chunks tokenised by several processes
contents     what prompts are made of: digests of files, settings, template
store        prompts tokenised once per node and mapped into memory
dataset      the prompts of one or more sets
order        which prompts each step takes
preview      what `scope-megatron data` prints
"""
