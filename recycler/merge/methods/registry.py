"""The table of merge methods: one function in a file of this folder and one row here add a method.

`merge/stream.py` runs a recipe tensor by tensor.
"""

from recycler.merge.methods.breadcrumbs import breadcrumbs, breadcrumbs_ties
from recycler.merge.methods.dare import dare_linear, dare_ties
from recycler.merge.methods.della import della, della_linear
from recycler.merge.methods.layers import layer_swap, lines
from recycler.merge.methods.linear import linear
from recycler.merge.methods.method import MergeMethod
from recycler.merge.methods.sign_consensus import sce, ties
from recycler.merge.methods.spectral import iso_c, tsv_merge
from recycler.merge.methods.spherical import karcher, model_stock, multislerp, nuslerp, slerp
from recycler.merge.methods.task_arithmetic import task_arithmetic
from recycler.merge.methods.widen import widen

_DROP = {"density": 1.0, "rescale": True, "normalize": False, "lambda": 1.0}
_DELLA = {"density": 1.0, "epsilon": 0.15, "rescale": True, "lambda": 1.0}
_CRUMBS = {"density": 1.0, "gamma": 0.01, "rescale": False, "normalize": False, "lambda": 1.0}

MERGE_METHODS: dict[str, MergeMethod] = {
    "linear": MergeMethod(function=linear, elementwise=True, options={"normalize": False}),
    "task_arithmetic": MergeMethod(
        function=task_arithmetic,
        needs_base=True,
        elementwise=True,
        options={"lambda": 1.0, "normalize": False},
    ),
    "model_stock": MergeMethod(
        function=model_stock, needs_base=True, options={"filter_wise": False}
    ),
    "slerp": MergeMethod(function=slerp, num_members=2),
    "nuslerp": MergeMethod(
        function=nuslerp,
        num_members=2,
        options={"nuslerp_flatten": True, "nuslerp_row_wise": False},
    ),
    "multislerp": MergeMethod(function=multislerp, options={"normalize_weights": True}),
    "karcher": MergeMethod(function=karcher, options={"max_iter": 10, "tol": 1e-5}),
    "ties": MergeMethod(
        function=ties,
        needs_base=True,
        options={"density": 1.0, "normalize": True, "rescale": False, "lambda": 1.0},
    ),
    "dare_linear": MergeMethod(function=dare_linear, needs_base=True, options=_DROP),
    "dare_ties": MergeMethod(function=dare_ties, needs_base=True, options=_DROP),
    "della": MergeMethod(function=della, needs_base=True, options=_DELLA | {"normalize": True}),
    "della_linear": MergeMethod(
        function=della_linear, needs_base=True, options=_DELLA | {"normalize": False}
    ),
    "breadcrumbs": MergeMethod(function=breadcrumbs, needs_base=True, options=_CRUMBS),
    "breadcrumbs_ties": MergeMethod(function=breadcrumbs_ties, needs_base=True, options=_CRUMBS),
    "sce": MergeMethod(function=sce, needs_base=True, options={"select_topk": 1.0}),
    "layer_swap": MergeMethod(
        function=layer_swap,
        num_members=2,
        elementwise=True,
        reads_all=True,
        by_depth=True,
        options={
            "bottom": 5,
            "top": 2,
            "bottom_transition": 1,
            "top_transition": 1,
            "embeddings": "adjacent",
            "final_norm": "adjacent",
            "head": "adjacent",
        },
    ),
    "widen": MergeMethod(
        function=widen, needs_base=True, reads_base=True, options={"ratio": 1.0, "calibration": 1.0}
    ),
    "lines": MergeMethod(
        function=lines,
        needs_base=True,
        elementwise=True,
        by_depth=True,
        options={"alpha": 0.5, "beta": 0.5},
    ),
    "tsv_merge": MergeMethod(function=tsv_merge, needs_base=True, options={"lambda": 1.0}),
    "iso_c": MergeMethod(function=iso_c, needs_base=True, options={"lambda": 1.0}),
}
