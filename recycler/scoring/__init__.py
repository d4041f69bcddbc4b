"""Scoring: a suite's frozen items, and the scores of one recipe on them.

suite_file.py     the file that a job names
rows.py           rows of data files, and templates filled from them
tasks.py          rows into frozen items
frozen.py         frozen items on disk
evaluate.py       an engine asked for everything at once
outcomes.py       its answers into outcomes, and outcomes into scores
scorers.py        the table of scorers
subsets.py        a score from some of the items
result_cache.py   answers kept across runs
lmeval/           tasks of lm-eval
sandbox/          programs that a model wrote, run safely
"""
