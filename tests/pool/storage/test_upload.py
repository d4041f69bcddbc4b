"""Exports into a bucket: whole or no model, the first writer wins, and merges from bucket to
bucket.
"""

import json

import pytest

from bucket_place import SHARD, put_model, same_bytes
from handmade import CONFIG, model_arrays, write_checkpoint
from recycler.errors import RecyclerError, UnsafeInputError, UsageError
from recycler.pool.catalog import open_checkpoint, open_pool
from recycler.pool.checks.scan import checkpoint_digest
from recycler.pool.storage import bucket
from recycler.pool.storage.files import local_file
from recycler.pool.storage.upload import upload_folder


def export_folder(tmp_path, seed=0, name="export"):
    folder = write_checkpoint(tmp_path / name, model_arrays(seed))
    from recycler.digest import file_digest

    manifest = {"files": {path.name: {"sha256": file_digest(path)} for path in folder.iterdir()}}
    (folder / "recycler-manifest.json").write_text(json.dumps(manifest))
    return folder


def test_an_upload_reads_back_as_the_same_model_and_twice_is_once(place, tmp_path, chaos):
    folder = export_folder(tmp_path)
    digests = upload_folder(folder, f"{place}/out")
    assert checkpoint_digest(open_checkpoint(f"{place}/out")) == checkpoint_digest(
        open_checkpoint(folder)
    )
    writes = [path for method, path, _ in chaos.log if method == "PUT"]
    assert writes[0].endswith("recycler-upload.json") and writes[-1].endswith(
        "recycler-manifest.json"
    )
    chaos.log.clear()
    assert upload_folder(folder, f"{place}/out") == digests
    assert not any(method == "PUT" for method, _, _ in chaos.log)
    with pytest.raises(UsageError, match="holds another model"):
        upload_folder(export_folder(tmp_path, 5, "other"), f"{place}/out")


def test_an_interrupted_upload_is_no_model_and_goes_on(place, tmp_path, chaos):
    folder = export_folder(tmp_path)
    for stop in range(1, 9):
        target = f"{place}/out{stop}"
        state = {"writes": 0}

        def plan(method, path, number, state=state, stop=stop):
            state["writes"] += method == "PUT"
            return "403" if method in ("PUT", "DELETE") and state["writes"] >= stop else None

        chaos.plan = plan
        try:
            upload_folder(folder, target)
        except RecyclerError:
            chaos.reset()
            with pytest.raises(UsageError):
                assert open_pool([target])
            if stop > 1:
                with pytest.raises(
                    UsageError, match="another model is being uploaded|holds another"
                ):
                    upload_folder(export_folder(tmp_path, 5, f"other{stop}"), target)
        chaos.reset()
        upload_folder(folder, target)
        assert checkpoint_digest(open_checkpoint(target)) == checkpoint_digest(
            open_checkpoint(folder)
        )


def test_of_two_writers_one_wins(place, tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    folders = [export_folder(tmp_path, seed, f"export{seed}") for seed in range(2)]

    def attempt(folder):
        try:
            return upload_folder(folder, f"{place}/out") and folder
        except UsageError:
            return None

    with ThreadPoolExecutor(2) as threads:
        winners = [folder for folder in threads.map(attempt, folders) if folder]
    assert len(winners) == 1
    assert checkpoint_digest(open_checkpoint(f"{place}/out")) == checkpoint_digest(
        open_checkpoint(winners[0])
    )


def test_a_shard_that_its_manifest_does_not_know_is_refused(place, tmp_path):
    upload_folder(export_folder(tmp_path), f"{place}/out")
    bucket.upload(f"{place}/out/{SHARD}", write_checkpoint(tmp_path / "x", model_arrays(9)) / SHARD)
    with pytest.raises(UnsafeInputError, match="its manifest says"):
        local_file(next(iter(open_checkpoint(f"{place}/out").tensors.values())))


def test_a_merge_reads_from_a_bucket_and_writes_into_one(place, tmp_path, capsys):
    """A recipe in another folder than the current one, ours and mergekit's with a gradient; the
    export's own recipe runs again.
    """
    from recycler.cli import main

    base = model_arrays(0)
    folders = [
        put_model(tmp_path, f"{place}/pool/{name}", number, near=base)
        for number, name in enumerate("ab", start=1)
    ]
    entries = "".join(
        f"- {{model: {place}/pool/{name}, parameters: {{weight: {weights}}}}}\n"
        for name, weights in (("a", [0.0, 1.0]), ("b", [1.0, 0.0]))
    )
    recipes = {
        "r.yaml": f"method: linear\nmembers: {{a: {place}/pool/a, b: {place}/pool/b}}\nweights: "
        f"{{a: "
        f"0.5, b: 0.5}}\n",
        "mk.yml": f"merge_method: linear\nmodels:\n{entries}dtype: bfloat16\n",
    }
    for number, (name, text) in enumerate(recipes.items()):
        (tmp_path / name).write_text(text)
        assert main(["plan", str(tmp_path / name)]) == 0
        assert main(["merge", str(tmp_path / name), f"{place}/out{number}"]) == 0
        (tmp_path / f"local-{name}").write_text(
            text.replace(f"{place}/pool/a", str(folders[0])).replace(
                f"{place}/pool/b", str(folders[1])
            )
        )
        assert (
            main(["merge", str(tmp_path / f"local-{name}"), str(tmp_path / f"local{number}")]) == 0
        )
        merged = open_checkpoint(f"{place}/out{number}")
        assert same_bytes(merged, tmp_path / f"local{number}")
        (tmp_path / "own.yaml").write_bytes(bucket.read(f"{place}/out{number}/recipe.yaml").raw)
        assert main(
            ["merge", str(tmp_path / "own.yaml"), str(tmp_path / f"again{number}")]
        ) == 0 and same_bytes(merged, tmp_path / f"again{number}")
    assert not (tmp_path / "s3:").exists()


def test_a_folder_without_a_manifest_is_not_uploaded(place, tmp_path):
    with pytest.raises(UsageError, match="has no recycler-manifest.json"):
        upload_folder(write_checkpoint(tmp_path / "x", config=CONFIG), f"{place}/out")
