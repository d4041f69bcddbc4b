"""What merges of a pool in a bucket cost: the distances that a disk would give, measured once, or
an error that names the object.
"""

import shutil
from contextlib import closing

import pytest

from bucket_place import SHARD, WIDE, in_bucket, only, put_folder, put_pair
from fakes import JobWorkers
from handmade import model_arrays, write_checkpoint
from recycler.errors import InfrastructureError, UsageError
from recycler.ledger import Ledger
from recycler.pool.catalog import open_pool
from recycler.pool.geometry.delta_products import delta_products
from recycler.pool.pack_writer import pack_pool
from recycler.pool.storage.cache import cache_folder, release_all
from recycler.results.measured_costs import stored_products
from recycler.run.driver import run_job
from small_job import JOB, write_job

COSTS = [{"cost": "members"}, {"cost": "distance"}]


def job_over(sound, folder, where, trials):
    folder.mkdir(exist_ok=True)
    return write_job(
        sound,
        folder,
        {"members": [f"{where}/members"], "base": f"{where}/base"},
        sampler="simplex_gp",
        budget={"trials": trials},
        objectives=[*JOB["objectives"], *COSTS],
    )


def run(job, run_folder):
    """(products in the ledger, weights and costs of all trials in order)."""
    workers = JobWorkers()

    def make(work, num_workers):
        workers.work = work
        return workers

    run_job(job, run_folder, make_workers=make)
    with closing(Ledger(run_folder / "ledger.sqlite")) as ledger:
        return ledger.facts.delta_products, [
            (trial.recipe.weights, [score for score in trial.search if score.is_exact])
            for trial in ledger.trials()
        ]


def forget():
    """The machine has no copy of anything any more."""
    release_all()
    shutil.rmtree(cache_folder())


@pytest.mark.parametrize(
    "dtypes", [("BF16",) * 4, ("F32", "BF16", "F16", "F32")], ids=["alike", "mixed"]
)
def test_a_pool_in_a_bucket_has_the_products_of_its_twin_on_disk_bit_for_bit(
    place, tmp_path, dtypes
):
    far, near = put_pair(tmp_path, place, dtypes=dtypes)
    assert stored_products(delta_products(far)) == stored_products(delta_products(near))


def test_a_packed_pool_in_a_bucket_has_them_too(place, tmp_path):
    _, near = put_pair(tmp_path, place)
    pack_pool(near, tmp_path / "packed")
    put_folder(tmp_path / "packed", f"{place}/packed")
    forget()
    assert stored_products(delta_products(open_pool([f"{place}/packed"]))) == stored_products(
        delta_products(near)
    )


def test_each_shard_is_fetched_once(place, tmp_path, chaos):
    far, _ = put_pair(tmp_path, place)
    chaos.log.clear()
    delta_products(far)
    delta_products(far)
    asked = [path for method, path, _ in chaos.log if method == "GET" and path.endswith(SHARD)]
    assert len(asked) == len(set(asked)) == 4


def test_a_bucket_that_breaks_or_changes_is_an_error_by_name_and_never_another_distance(
    place, tmp_path, chaos, monkeypatch
):
    monkeypatch.setenv("RECYCLER_BUCKET_TIMEOUT", "2")
    far, near = put_pair(tmp_path, place)
    chaos.plan = only(f"GET .*m1/{SHARD}", "503", times=2)
    assert stored_products(delta_products(far)) == stored_products(
        delta_products(near)
    )  # a bucket that stumbles
    for fault in ("shifted", "403", "reset"):
        forget()
        chaos.plan = only(f"GET .*m1/{SHARD}", fault)
        with pytest.raises((InfrastructureError, UsageError), match="m1"):
            delta_products(far)
    chaos.reset()
    forget()
    put_folder(write_checkpoint(tmp_path / "other", model_arrays(99, shapes=WIDE)), f"{place}/m1")
    with pytest.raises(InfrastructureError, match=f"m1/{SHARD}: was overwritten"):
        delta_products(far)


def test_a_job_over_a_bucket_has_the_costs_that_it_would_have_over_a_disk_and_goes_on_with_them(
    sound, place, tmp_path, monkeypatch
):
    in_bucket(sound, place)
    whole = run(job_over(sound, tmp_path / "near", sound / "pool", 8), tmp_path / "disk")
    assert run(job_over(sound, tmp_path / "far", place, 4), tmp_path / "bucket") == (
        whole[0],
        whole[1][:-4],
    )
    forget()
    monkeypatch.setattr(
        "recycler.results.measured_costs.delta_products",
        lambda pool: pytest.fail("the pool was read again"),
    )
    assert run(job_over(sound, tmp_path / "far", place, 8), tmp_path / "bucket") == whole


def test_a_bucket_that_dies_while_distances_are_measured_ends_the_driver_before_any_trial(
    sound, place, tmp_path, chaos, monkeypatch
):
    """Without them no merge has its cost, so there is nothing to go on with; the same command
    begins where this ended.
    """
    in_bucket(sound, place)
    monkeypatch.setenv("RECYCLER_BUCKET_TIMEOUT", "2")

    def too_late(pool):
        forget()
        chaos.plan = only(f"GET .*{SHARD}", "reset")
        return delta_products(pool)

    with monkeypatch.context() as patch:
        patch.setattr("recycler.results.measured_costs.delta_products", too_late)
        with pytest.raises(InfrastructureError, match=place):
            run(job_over(sound, tmp_path / "far", place, 4), tmp_path / "run")
    with closing(Ledger(tmp_path / "run/ledger.sqlite")) as ledger:
        assert ledger.trials() == () and ledger.facts.delta_products is None
    chaos.reset()
    assert run(job_over(sound, tmp_path / "far", place, 4), tmp_path / "run") == run(
        job_over(sound, tmp_path / "near", sound / "pool", 4), tmp_path / "disk"
    )
