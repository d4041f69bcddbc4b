"""recycler: search, score and export merges of checkpoints you already have.

    types errors digest yamls        values: standard library only
    job space suite pareto stats     rules: pure, no I/O beyond reading YAML
    pool merge engines scoring       adapters: one outside library behind one file
    search ledger cluster export     the loop, what it remembers, where it runs, what comes out
    cli                              the door

Importing this package loads none of torch, ray, vllm, optuna or transformers.
"""

__version__ = "0.1.0"
