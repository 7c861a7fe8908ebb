"""The recovery study: does the teacher's perplexity say which wrong responses it could still save?

samples      the student's responses, judged
completion   prefixes of the wrong ones, completed by the teacher
overlap      mass of each model on the other's likeliest tokens
findings     recovery by quartile of perplexity, intervals, trend tests
"""
