"""Open checkpoints and pools from folders: headers and configs only, milliseconds for any size."""

from __future__ import annotations

import glob
import json
from collections.abc import Sequence
from pathlib import Path

from recycler.errors import Problem, RecyclerError, UnsafeInputError, UsageError, raise_problems
from recycler.pool.headers import read_header
from recycler.types import Checkpoint, Pool, TensorInfo

INDEX = "model.safetensors.index.json"


def open_checkpoint(folder: Path, name: str | None = None) -> Checkpoint:
    """A Hugging Face folder as a Checkpoint. Raises UsageError or UnsafeInputError with every problem found."""
    name = name or folder.name
    if not folder.is_dir():
        raise UsageError(Problem(thing=f"checkpoint {name!r}", cause=f"{folder} is not a folder", remedy="Give the folder that holds config.json"))
    config = _read_config(folder)
    tensors: dict[str, TensorInfo] = {}
    for file in _weight_files(folder):
        for tensor_name, info in read_header(file).items():
            if tensor_name in tensors:
                raise UnsafeInputError(Problem(thing=str(file), cause=f"tensor {tensor_name!r} is in {tensors[tensor_name].file} too", remedy="Remove the stray shard"))
            tensors[tensor_name] = info
    _check_index(folder, tensors)
    return Checkpoint(name=name, location=str(folder), tensors=tensors, config=config)


def open_pool(members: Sequence[str | Path], base: str | Path | None = None) -> Pool:
    """Folders, globs, or folders of folders, as a Pool; members are named after their folders and sorted as given.

    Raises one error that lists the problems of every checkpoint.
    """
    folders: list[Path] = []
    problems: list[Problem] = []
    for pattern in map(str, members):
        found = _expand(pattern)
        if not found:
            problems.append(Problem(thing=f"pool entry {pattern!r}", cause="matches no folder with a config.json", remedy="Check the path; globs like runs/*/ are allowed"))
        folders += found
    checkpoints: list[Checkpoint] = []
    worst: type[RecyclerError] = UsageError
    for name, folder in _named(folders) + ([("base", Path(base))] if base else []):
        try:
            checkpoints.append(open_checkpoint(folder, name))
        except RecyclerError as error:
            problems += error.problems
            worst = UnsafeInputError if isinstance(error, UnsafeInputError) else worst
    raise_problems(problems, worst)
    return Pool(members=tuple(checkpoints[: len(folders)]), base=checkpoints[-1] if base else None)


def _expand(pattern: str) -> list[Path]:
    found = [Path(path) for path in sorted(glob.glob(pattern))]
    folders: list[Path] = []
    for path in found:
        if (path / "config.json").is_file():
            folders.append(path)
        elif path.is_dir():
            folders += [child for child in sorted(path.iterdir()) if (child / "config.json").is_file()]
    return folders


def _named(folders: Sequence[Path]) -> list[tuple[str, Path]]:
    """Short names where they are unique, else parent-name; 'base' is kept for the base."""
    names = [folder.resolve().name for folder in folders]
    return [(name if names.count(name) == 1 and name != "base" else f"{folder.resolve().parent.name}-{name}", folder)
            for name, folder in zip(names, folders, strict=True)]


def _read_config(folder: Path) -> dict:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise UsageError(Problem(thing=str(folder), cause="has no config.json", remedy="Save the checkpoint with save_pretrained")) from None
    except (ValueError, OSError, RecursionError) as error:
        raise UnsafeInputError(Problem(thing=str(path), cause=f"cannot be read ({error})", remedy="Save the checkpoint again")) from None
    if not isinstance(config, dict):
        raise UnsafeInputError(Problem(thing=str(path), cause="is not a JSON object", remedy="Save the checkpoint again"))
    if "auto_map" in config:
        raise UnsafeInputError(Problem(thing=str(path), cause="asks to run code from the checkpoint (auto_map)", remedy="Remote code is never run; use an architecture that transformers knows"))
    return config


def _weight_files(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.glob("*.safetensors") if path.name != "adapter_model.safetensors")
    if files:
        return files
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.pkl") for path in folder.glob(pattern))
    if pickles:
        raise UnsafeInputError(Problem(thing=str(folder), cause=f"holds pickles ({', '.join(pickles[:3])}), which can run code when opened", remedy="Convert it to safetensors in a place you trust"))
    if (folder / "adapter_config.json").is_file():
        raise UsageError(Problem(thing=str(folder), cause="is a LoRA adapter, not a full checkpoint", remedy="Fold it into its base first: recycler fold BASE ADAPTER OUT"))
    raise UsageError(Problem(thing=str(folder), cause="has no .safetensors file", remedy="Save the checkpoint with save_pretrained"))


def _check_index(folder: Path, tensors: dict[str, TensorInfo]) -> None:
    path = folder / INDEX
    if not path.exists():
        return
    try:
        weight_map = json.loads(path.read_text())["weight_map"]
        claimed = {str(name): str(file) for name, file in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
        raise UnsafeInputError(Problem(thing=str(path), cause=f"is not a shard index ({error})", remedy="Save the checkpoint again")) from None
    actual = {name: Path(info.file).name for name, info in tensors.items()}
    wrong = sorted(name for name in claimed.keys() | actual.keys() if claimed.get(name) != actual.get(name))
    if wrong:
        raise UnsafeInputError(Problem(thing=str(path), cause=f"disagrees with the shards about {len(wrong)} tensors, first {wrong[0]!r}", remedy="A shard is missing or stray; copy the checkpoint again"))
