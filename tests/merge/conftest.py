"""A pool of three small members and their base, as files."""

import pytest
from safetensors.torch import save_file

from recycler.location import parse_location
from recycler.pool.storage.headers import read_header
from recycler.types import Checkpoint, Pool
from small_merge import tensors_of


@pytest.fixture
def pool(tmp_path):
    checkpoints = []
    for seed, name in enumerate(("base", "a", "b", "c")):
        folder = tmp_path / name
        folder.mkdir()
        save_file(tensors_of(seed), folder / "model.safetensors")
        checkpoints.append(
            Checkpoint(
                name=name,
                location=parse_location(folder),
                tensors=read_header(folder / "model.safetensors"),
                config={"num_hidden_layers": 3},
            )
        )
    return Pool(members=tuple(checkpoints[1:]), base=checkpoints[0])
