"""Lineage of a checkpoint, as the small files beside its weights tell: base, adapter, training.

All of it was written by whoever made the checkpoint. It is told as it was written, cut to a line,
and trusted for nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recycler.errors import RecyclerError
from recycler.io.strict_yaml import load_yaml
from recycler.location import DiskLocation, Location, PackLocation

MAX_BYTES, MAX_TEXT = 1_000_000, 200
Facts = dict[str, str]


def lineage(location: Location) -> Facts:
    """Facts by name about a checkpoint's folder on disk; empty when the folder is elsewhere.

    They come from config.json, adapter_config.json (PEFT), trainer_state.json (transformers'
    Trainer), the metadata of README.md, and recycler-manifest.json. Files that cannot be read are
    passed over: the facts are for people, nothing depends on them.
    """
    if isinstance(location, PackLocation):
        return {"packed as": f"{location.name} in {location.pack}"[:MAX_TEXT]}
    if not isinstance(location, DiskLocation) or not Path(location.path).is_dir():
        return {}
    folder = Path(location.path)
    found: Facts = {}
    for name, read in _SOURCES.items():
        try:
            path = folder / name
            if path.is_file() and path.stat().st_size <= MAX_BYTES:
                values = read(path.read_text(errors="replace"))
                lines = {fact: _line(value) for fact, value in values.items()}
                found |= {fact: line for fact, line in lines.items() if line}
        except (OSError, ValueError, TypeError, AttributeError, RecursionError, RecyclerError):
            continue
    return found


def _config(text: str) -> dict[str, Any]:
    config = json.loads(text)
    return {
        "architecture": config.get("model_type"),
        "saved from": config.get("_name_or_path"),
        "dtype": config.get("dtype") or config.get("torch_dtype"),
    }


def _adapter(text: str) -> dict[str, Any]:
    config = json.loads(text)
    return {
        "adapter": f"{config.get('peft_type', '')} rank {config.get('r')} alpha "
        f"{config.get('lora_alpha')}",
        "adapter of": config.get("base_model_name_or_path"),
        "adapted modules": config.get("target_modules"),
    }


def _trainer(text: str) -> dict[str, Any]:
    state = json.loads(text)
    losses = [entry["loss"] for entry in state.get("log_history", []) if "loss" in entry]
    return {
        "trained": f"{state.get('global_step')} of {state.get('max_steps')} steps, "
        f"{float(state.get('epoch', 0)):.2f} epochs",
        "last loss": losses[-1] if losses else None,
    }


def _readme(text: str) -> dict[str, Any]:
    if not text.startswith("---\n") or "\n---" not in text[4:]:
        return {}
    metadata = load_yaml("README.md", text[4 : text.index("\n---", 4) + 1]).data
    return {
        "base model": metadata.get("base_model"),
        "relation to it": metadata.get("base_model_relation"),
        "datasets": metadata.get("datasets"),
        "licence": metadata.get("license"),
    }


def _manifest(text: str) -> dict[str, Any]:
    manifest = json.loads(text)
    return {
        "made by": f"recycler, recipe {str(manifest.get('recipe_digest'))[:12]}",
        "weights": str(manifest.get("weights_digest"))[:12],
    }


_SOURCES: dict[str, Callable[[str], dict[str, Any]]] = {
    "config.json": _config,
    "adapter_config.json": _adapter,
    "trainer_state.json": _trainer,
    "README.md": _readme,
    "recycler-manifest.json": _manifest,
}


def _line(value: Any) -> str:
    """A value on one line, cut; "" for what is neither text nor number."""
    if isinstance(value, (list, tuple, set)):
        value = ", ".join(map(str, value))
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return ""
    return " ".join(str(value).split())[:MAX_TEXT]
