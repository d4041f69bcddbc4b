"""recycler: search, score and export merges of checkpoints you already have.

    types location errors digest       small frozen values: standard library only
    io objectives recipe_json specs    files, fronts and costs, what the user writes
    ledger pool merge search           what happened, checkpoints, merges, samplers
    engines scoring                    live models; frozen items and scorers
    cluster results run                workers, the front and its report, a job from start to end
    export service dashboard cli demo  folders that anyone can serve, and the doors
    testing                            pico pools, and the contract of an engine

Imports go down this list only. Importing this package loads none of torch, ray, vllm, optuna or
transformers.
"""

__version__ = "0.1.0"
