"""Run folders that a service shows."""

import pytest

from service_runs import EVIL, make_run


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    make_run(outside, "secret", merges=2)
    root = outside / "root"
    root.mkdir()
    make_run(root, "demo", checkpoints=True, suites=True)
    make_run(root, "evil", merges=3, label=EVIL)
    (root / "linked").symlink_to(outside / "secret")
    return root
