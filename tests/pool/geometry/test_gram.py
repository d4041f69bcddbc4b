"""Distances between merges of a pool in a bucket: the matrix that a disk would give, within a
bound, and never at the cost of the job.
"""

import shutil
from contextlib import closing

import numpy as np
import pytest

from bucket_place import SHARD, WIDE, in_bucket, only, put_folder, put_pair
from fakes import JobWorkers
from handmade import model_arrays, write_checkpoint
from recycler.errors import InfrastructureError, UnsafeInputError, UsageError
from recycler.ledger import Ledger
from recycler.pool.catalog import open_checkpoint, open_pool
from recycler.pool.geometry import gram as gram_module
from recycler.pool.geometry.gram import delta_gram
from recycler.pool.pack_writer import pack_pool
from recycler.pool.storage.cache import cache_folder, release_all
from recycler.pool.storage.files import local_file
from recycler.run.driver import run_job
from small_job import write_job


def bytes_asked(chaos):
    """What ranges of shards were asked for, in bytes."""
    ranges = [
        asked.removeprefix("bytes=").split("-")
        for method, path, asked in chaos.log
        if method == "GET" and path.endswith(SHARD)
    ]
    return sum(int(last) - int(first) + 1 for first, last in ranges)


@pytest.mark.parametrize("sample", [None, 16_384, 800])
@pytest.mark.parametrize("base", [True, False])
@pytest.mark.parametrize(
    "dtypes", [("BF16",) * 4, ("F32", "BF16", "F16", "F32")], ids=["alike", "mixed"]
)
def test_a_pool_in_a_bucket_has_the_matrix_of_its_twin_on_disk_bit_for_bit(
    place, tmp_path, sample, base, dtypes
):
    far, near = put_pair(tmp_path, place, base=base, dtypes=dtypes)
    assert delta_gram(far, sample=sample) == delta_gram(near, sample=sample)
    assert not list(cache_folder().glob("*.bin"))  # ranges were read, and no member fetched


@pytest.mark.parametrize("base", [True, False])
def test_the_matrix_of_everything_agrees_with_numpy_and_a_sample_comes_near(tmp_path, base):
    arrays = [model_arrays(0, shapes=WIDE)]
    arrays += [
        model_arrays(seed, near=arrays[0], shapes=WIDE, scale=1e-2 * seed) for seed in (1, 2, 3)
    ]
    for index, one in enumerate(arrays):
        write_checkpoint(tmp_path / f"m{index}", one, dtype="F32")
    pool = open_pool(
        [tmp_path / f"m{index}" for index in ((1, 2, 3) if base else (0, 1, 2, 3))],
        tmp_path / "m0" if base else None,
    )
    flat = np.array(
        [np.concatenate([one[name].ravel() for name in WIDE]) for one in arrays], dtype=float
    )
    deltas = (flat[1:] if base else flat) - flat[0]
    whole = np.array(delta_gram(pool, sample=None))
    assert whole == pytest.approx(deltas @ deltas.T / (flat[0] @ flat[0]), rel=1e-4, abs=1e-7)
    assert np.array(delta_gram(pool, sample=800)) == pytest.approx(
        whole, rel=0.15, abs=0.02 * whole.max()
    )


def test_members_that_are_in_the_cache_are_read_there(place, tmp_path, chaos):
    far, near = put_pair(tmp_path, place)
    for checkpoint in far.checkpoints[:2]:
        local_file(next(iter(checkpoint.tensors.values())))
    chaos.log.clear()
    assert delta_gram(far) == delta_gram(near)
    asked = {
        path.split("/")[-2]
        for method, path, _ in chaos.log
        if method == "GET" and path.endswith(SHARD)
    }
    assert asked == {"m2", "base"}
    for checkpoint in far.checkpoints[2:]:
        local_file(next(iter(checkpoint.tensors.values())))
    chaos.plan = only("GET", "reset")
    assert delta_gram(far) == delta_gram(
        near
    )  # whole in the cache: a bucket that is away is not asked
    release_all()


@pytest.mark.parametrize("max_bytes", [1_200_000, 300_000, 150_000])
def test_no_more_is_read_than_the_bound_says_and_what_is_left_still_tells_members_apart(
    place, tmp_path, chaos, max_bytes, monkeypatch
):
    far, near = put_pair(tmp_path, place)
    chaos.log.clear()
    monkeypatch.setenv("RECYCLER_GRAM_BYTES", str(max_bytes))
    found, whole = np.array(delta_gram(far)), np.array(delta_gram(near, sample=None))
    assert 0 < bytes_asked(chaos) <= max_bytes
    assert np.array(delta_gram(far)) == pytest.approx(found, rel=0)  # the same elements again
    roots = np.sqrt(np.outer(np.diag(whole), np.diag(whole)))
    assert (
        np.abs(found - whole).max() < 0.5 * whole.max()
        and np.abs((found - whole) / roots).max() < 0.5
    )
    assert np.corrcoef(found[np.triu_indices(3)], whole[np.triu_indices(3)])[0, 1] > 0.95


def test_the_number_of_requests_is_bounded_too_and_all_seeds_together_are_right(
    place, tmp_path, chaos, monkeypatch
):
    far, near = put_pair(tmp_path, place)
    monkeypatch.setattr(gram_module, "MAX_RANGES", 90)
    chaos.log.clear()
    found = [np.array(delta_gram(far, seed=seed)) for seed in range(12)]
    assert len(chaos.log) <= 12 * 90 and len({matrix[0, 0] for matrix in found}) > 1
    assert np.mean(found, axis=0) == pytest.approx(
        np.array(delta_gram(near)), rel=0.1, abs=0.02 * found[0].max()
    )


def test_too_little_is_refused_with_the_setting_to_raise(place, tmp_path, monkeypatch):
    far, near = put_pair(tmp_path, place)
    for text in ("0", "2000"):
        monkeypatch.setenv("RECYCLER_GRAM_BYTES", text)
        with pytest.raises(UsageError, match="RECYCLER_GRAM_BYTES"):
            delta_gram(far)
        assert delta_gram(near)  # a disk is not bounded
    monkeypatch.setenv("RECYCLER_GRAM_BYTES", "much")
    with pytest.raises(UsageError, match="is 'much', not a number of bytes"):
        delta_gram(far)


def test_a_bucket_that_breaks_or_changes_is_an_error_and_never_a_wrong_matrix(
    place, tmp_path, chaos
):
    far, near = put_pair(tmp_path, place)
    chaos.plan = only(f"GET .*m1/{SHARD}", "503", times=2)
    assert delta_gram(far) == delta_gram(near)  # a bucket that stumbles
    for fault in ("shifted", "403"):
        chaos.plan = only(f"GET .*m1/{SHARD}", fault)
        with pytest.raises((InfrastructureError, UsageError), match="m1"):
            delta_gram(far)
    chaos.reset()
    put_folder(write_checkpoint(tmp_path / "other", model_arrays(99, shapes=WIDE)), f"{place}/m1")
    with pytest.raises(InfrastructureError, match=f"m1/{SHARD}: was overwritten"):
        delta_gram(far)
    path = tmp_path / "disk/m1" / SHARD
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UnsafeInputError, match="was changed since its header was read"):
        delta_gram(near)


def test_a_packed_pool_in_a_bucket_is_not_fetched_for_it(place, tmp_path):
    _, near = put_pair(tmp_path, place)
    pack_pool(near, tmp_path / "packed")
    put_folder(tmp_path / "packed", f"{place}/packed")
    on_disk, far = open_pool([tmp_path / "packed"]), open_pool([f"{place}/packed"])
    assert np.array(delta_gram(on_disk)) == pytest.approx(np.array(delta_gram(near)), rel=1e-9)
    release_all()
    shutil.rmtree(cache_folder())
    far = open_pool([f"{place}/packed"])
    with pytest.raises(UsageError, match="cannot be read in part"):
        delta_gram(far)
    local_file(next(iter(open_checkpoint(far.members[0].location).tensors.values())))


# ---------------------------------------------------------------- jobs


def job_over(sound, folder, where, trials):
    folder.mkdir(exist_ok=True)
    return write_job(
        sound,
        folder,
        {"members": [f"{where}/members"], "base": f"{where}/base"},
        sampler="simplex_gp",
        budget={"trials": trials},
    )


def run(job, run_folder):
    """(matrix in the ledger, weights of all trials in order, what was said at the start)."""
    workers, said = JobWorkers(), []

    def make(work, num_workers):
        workers.work = work
        return workers

    run_job(
        job,
        run_folder,
        make_workers=make,
        started=lambda prepared, trials: said.extend(prepared.warnings),
    )
    with closing(Ledger(run_folder / "ledger.sqlite")) as ledger:
        return (
            ledger.facts.gram,
            [trial.recipe.weights for trial in ledger.trials()],
            " ".join(said),
        )


def test_a_job_over_a_bucket_proposes_what_it_would_over_a_disk_and_resumes_with_its_matrix(
    sound, place, tmp_path, monkeypatch
):
    in_bucket(sound, place)
    matrix, proposed, said = run(
        job_over(sound, tmp_path / "near", sound / "pool", 9), tmp_path / "disk"
    )
    assert matrix is not None and "distances" not in said
    assert run(job_over(sound, tmp_path / "far", place, 9), tmp_path / "bucket")[:2] == (
        matrix,
        proposed,
    )
    assert run(job_over(sound, tmp_path / "far", place, 5), tmp_path / "halted")[:2] == (
        matrix,
        proposed[:-4],
    )
    monkeypatch.setenv("RECYCLER_GRAM_BYTES", "0")  # nothing is measured anew
    release_all()
    shutil.rmtree(cache_folder())
    assert run(job_over(sound, tmp_path / "far", place, 9), tmp_path / "halted")[:2] == (
        matrix,
        proposed,
    )


def test_a_bucket_that_dies_before_the_matrix_is_measured_costs_a_notice_and_not_the_job(
    sound, place, tmp_path, monkeypatch, chaos
):
    in_bucket(sound, place)
    monkeypatch.setenv("RECYCLER_BUCKET_TIMEOUT", "1")

    def too_late(pool, **more):
        release_all()
        shutil.rmtree(cache_folder())
        chaos.plan = lambda method, path, number: "reset"
        try:
            return delta_gram(pool, **more)
        finally:
            chaos.reset()

    with monkeypatch.context() as patch:
        patch.setattr("recycler.run.wiring.delta_gram", too_late)
        matrix, proposed, said = run(job_over(sound, tmp_path / "far", place, 5), tmp_path / "run")
    assert matrix is None and "the search goes by the weights alone" in said and place in said
    matrix, longer, said = run(
        job_over(sound, tmp_path / "far", place, 7), tmp_path / "run"
    )  # the bucket is back: still the same search
    assert (
        matrix is None
        and longer[: len(proposed)] == proposed
        and len(longer) == len(proposed) + 2
        and "goes by the weights" not in said
    )


def test_a_run_that_began_without_a_matrix_goes_on_without(sound, place, tmp_path, monkeypatch):
    in_bucket(sound, place)
    monkeypatch.setenv("RECYCLER_GRAM_BYTES", "0")
    release_all()
    monkeypatch.setattr("recycler.pool.storage.byte_ranges.is_cached", lambda *version: False)
    whole = run(job_over(sound, tmp_path / "far", place, 9), tmp_path / "whole")
    matrix, proposed, said = run(job_over(sound, tmp_path / "far", place, 5), tmp_path / "run")
    assert matrix is None and "Raise RECYCLER_GRAM_BYTES" in said
    monkeypatch.delenv("RECYCLER_GRAM_BYTES")
    assert (
        run(job_over(sound, tmp_path / "far", place, 9), tmp_path / "run")[:2]
        == whole[:2]
        == (None, [*proposed, *whole[1][len(proposed) :]])
    )
