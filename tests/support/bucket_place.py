"""Checkpoints in a bucket, their twins on disk, and plans of what the bucket shall break."""

import re

from handmade import SHAPES, model_arrays, write_checkpoint
from recycler.pool.catalog import open_checkpoint, open_pool
from recycler.pool.storage import bucket
from recycler.pool.storage.files import local_file

SHARD = "model.safetensors"


def put_folder(folder, url):
    for path in sorted(folder.iterdir()):
        bucket.upload(f"{url}/{path.name}", path)


def put_model(tmp_path, url, seed=0, *, near=None, rows=0, **more):
    """A checkpoint in the bucket and its twin on disk; `rows` of 512 numbers make it large."""
    shapes = SHAPES | ({"model.layers.0.big": (rows, 512)} if rows else {})
    folder = write_checkpoint(
        tmp_path / "local" / f"{url.rsplit('/', 1)[-1]}-{seed}",
        model_arrays(seed, near=near, shapes=shapes, scale=1e-3 if near else 0.1),
        **more,
    )
    put_folder(folder, url)
    return folder


def same_bytes(checkpoint, folder):
    """Every tensor of a checkpoint in a bucket, compared with the folder it was made from."""
    twin = open_checkpoint(folder)
    assert checkpoint.tensors.keys() == twin.tensors.keys() and checkpoint.config == twin.config
    for name, info in checkpoint.tensors.items():
        raw = local_file(info).read_bytes()[info.start : info.start + info.num_bytes]
        other = twin.tensors[name]
        if raw != (folder / SHARD).read_bytes()[other.start : other.start + other.num_bytes]:
            return False
    return True


def only(words, fault, times=10**9):
    """A plan:

    `fault` for requests whose 'METHOD path' matches, the first `times` times each path is asked
    for.
    """
    return lambda method, path, number: (
        fault if re.search(words, f"{method} {path}") and number <= times else None
    )


WIDE = SHAPES | {f"model.layers.{layer}.wide": (40 + 9 * layer, 130) for layer in range(12)}


def put_pair(tmp_path, url, *, base=True, dtypes=("BF16",) * 4):
    """The same pool of three members in a bucket and on disk."""
    origin = model_arrays(0, shapes=WIDE)
    for name, dtype in zip(("base", "m0", "m1", "m2"), dtypes, strict=True):
        arrays = (
            origin
            if name == "base"
            else model_arrays(
                int(name[1]) + 1, near=origin, shapes=WIDE, scale=1e-2 * (1 + int(name[1]))
            )
        )
        put_folder(write_checkpoint(tmp_path / "disk" / name, arrays, dtype=dtype), f"{url}/{name}")
    names = ("m0", "m1", "m2")
    return tuple(
        open_pool([f"{where}/{name}" for name in names], f"{where}/base" if base else None)
        for where in (url, tmp_path / "disk")
    )


def in_bucket(sound, place):
    for part in ("base", "members/m0", "members/m1", "members/m2"):
        put_folder(sound / "pool" / part, f"{place}/{part}")
