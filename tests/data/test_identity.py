"""Of what a cache is: the contents of files, and what tells that they changed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from training.tiny import Colors, TinyPipeline
from twinflow.data.cache import CachedRows, check_identity, read_index, remember_files, write_cache
from twinflow.data.encoding import ItemEncoder
from twinflow.data.identity import FileHashes, data_identity, differences, model_identity
from twinflow.data.opening import open_data
from twinflow.recipes.data import FolderData, TableData

from .cache_tiny import IDENTITY, write
from .shards import write_parquet


def test_identities_name_what_differs(tmp_path: Path) -> None:
    check_identity(tmp_path, {"identity": IDENTITY}, IDENTITY)
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "d": 3}}) == [
        "a.c: 2 in the cache, None now",
        "a.d: None in the cache, 3 now",
    ]


def test_contents_of_files_count_and_their_place_does_not(tmp_path: Path) -> None:
    first, second = tmp_path / "one", tmp_path / "two"
    for folder in (first, second):
        folder.mkdir()
        Image.new("RGB", (8, 8), "red").save(folder / "a.png")
        (folder / "a.txt").write_text("red")

    def identity(folder: Path, hashes: FileHashes | None = None, **more: Any) -> Any:
        settings = FolderData.model_validate({"kind": "folder", "path": str(folder), "size": 8, **more})
        return data_identity(settings, hashes=hashes or FileHashes())

    hashes = FileHashes()
    before = identity(first, hashes)
    assert before == identity(second) == identity(first, cache="x", encode_batch=3)
    assert differences(before, identity(first, size=16)) == ["size: 8 in the cache, 16 now"]
    (first / "a.txt").write_text("rot")
    (line,) = differences(before, identity(first, FileHashes(json.loads(json.dumps(hashes.known)))))
    assert line.startswith("contents.a.txt: ")


def test_files_that_did_not_change_are_not_read_again(tmp_path: Path) -> None:
    file = tmp_path / "big.safetensors"
    file.write_bytes(b"1234")
    hashes = FileHashes()
    first = hashes.of(tmp_path, [file], prefix="model")
    ((name, stat),) = hashes.known.items()
    as_it_was = json.loads(json.dumps({name: (*stat[:-1], "what is known")}))
    assert FileHashes(as_it_was).of(tmp_path, [file], prefix="model") == {file.name: "what is known"}
    assert hashes.of(tmp_path, [file], prefix="model") == first


def test_a_file_in_the_place_of_another_of_its_size_and_time_is_read(tmp_path: Path) -> None:
    """Weights of one architecture have one size, and tools that copy and unpack set the time of change."""
    file, other = tmp_path / "model.safetensors", tmp_path / "other.safetensors"
    file.write_bytes(b"1234")
    hashes = FileHashes()
    first = hashes.of(tmp_path, [file], prefix="model")
    stat = file.stat()
    while not other.exists() or other.stat().st_ctime_ns == stat.st_ctime_ns:  # its clock ticks slowly
        other.write_bytes(b"5678")
        os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other.replace(file)
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    assert FileHashes(hashes.known).of(tmp_path, [file], prefix="model") != first


def table(path: Path) -> TableData:
    return TableData.model_validate({"kind": "dataset", "path": str(path), "size": 8})


def folder(path: Path) -> FolderData:
    return FolderData.model_validate({"kind": "folder", "path": str(path), "size": 8})


def test_pictures_that_metadata_names_elsewhere_are_contents(tmp_path: Path) -> None:
    for name in ("list", "pictures", ".hidden"):
        (tmp_path / name).mkdir()
    names = {"file_name": "../pictures/a.png", "source": "../.hidden/b.png", "text": "redder"}
    (tmp_path / "list" / "metadata.jsonl").write_text(json.dumps(names))
    files = [tmp_path / "pictures" / "a.png", tmp_path / ".hidden" / "b.png"]
    for file in files:
        Image.new("RGB", (8, 8), "red").save(file)
    before = data_identity(folder(tmp_path / "list"), hashes=FileHashes())
    for file in files:
        Image.new("RGB", (8, 8), "blue").save(file)
        after = data_identity(folder(tmp_path / "list"), hashes=FileHashes())
        (line,) = differences(before, after)
        assert file.name in line
        before = after


def test_what_else_lies_beside_the_data_is_no_content(tmp_path: Path) -> None:
    """The cache itself may be put into the folder of the pictures; ``datasets`` writes notes beside what it saved."""
    pictures, saved = tmp_path / "pictures", tmp_path / "saved"
    pictures.mkdir()
    Image.new("RGB", (8, 8), "red").save(pictures / "a.png")
    (pictures / "a.txt").write_text("red")
    before = data_identity(folder(pictures), hashes=FileHashes())
    write(pictures / "cache")
    assert data_identity(folder(pictures), hashes=FileHashes()) == before

    write_parquet(tmp_path)
    rows = datasets.load_dataset("parquet", data_files=str(tmp_path / "part-0.parquet"), split="train")
    rows.save_to_disk(saved)
    before = data_identity(table(saved), hashes=FileHashes())
    there = set(saved.rglob("*"))
    open_data(table(saved), seed=0)
    assert set(saved.rglob("*")) > there
    assert data_identity(table(saved), hashes=FileHashes()) == before
    (arrow,) = saved.glob("data-*.arrow")
    arrow.write_bytes(arrow.read_bytes() + b"\0")
    assert differences(before, data_identity(table(saved), hashes=FileHashes()))


def test_hashes_of_files_that_only_look_changed_are_kept(tmp_path: Path) -> None:
    """A data set that was copied is read once more, and not at every start; and a run does not hold them."""
    file = tmp_path / "a.png"
    Image.new("RGB", (8, 8), "red").save(file)
    hashes = FileHashes()
    hashes.of(tmp_path, [file], prefix="data")
    write_cache(
        tmp_path / "cache",
        Colors(3),
        ItemEncoder(TinyPipeline(), unconditional=""),
        identity=IDENTITY,
        hashes=hashes,
    )
    os.utime(file, ns=(5, 5))
    rows = CachedRows(tmp_path / "cache")
    present = FileHashes(rows.index["files"])
    present.of(tmp_path, [file], prefix="data")
    remember_files(rows, present)
    assert "files" not in rows.index
    again = read_index(tmp_path / "cache")
    assert FileHashes(again["files"]).known == present.known != hashes.known
    assert again["identity"] == IDENTITY
    assert len(CachedRows(tmp_path / "cache")) == 3


def test_a_models_identity_is_its_encoders(tmp_path: Path) -> None:
    parts = {
        "_class_name": "P",
        "vae": ["diffusers", "V"],
        "transformer": ["diffusers", "T"],
        "x": [None, None],
    }
    (tmp_path / "model_index.json").write_text(json.dumps(parts))
    for name in ("vae", "transformer"):
        (tmp_path / name).mkdir()
        for file in ("config.json", "model.safetensors"):
            (tmp_path / name / file).write_text(name)

    def identity(**settings: Any) -> dict[str, Any]:
        return model_identity(str(tmp_path), settings=settings, hashes=FileHashes())

    before = identity(call={"height": 8, "image": Image.new("RGB", (2, 2))})
    assert sorted(before["files"]) == ["transformer/config.json", "vae/config.json", "vae/model.safetensors"]
    (tmp_path / "transformer" / "model.safetensors").write_text("trained")
    assert identity(call={"height": 8, "image": Image.new("RGB", (2, 2))}) == before
    red = identity(call={"height": 8, "image": Image.new("RGB", (2, 2), "red")})
    assert [line.split(":")[0] for line in differences(before, red)] == ["call.image"]
    (tmp_path / "vae" / "model.safetensors").write_text("other")
    assert len(differences(red, identity(call={"height": 8, "image": Image.new("RGB", (2, 2), "red")}))) == 1


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_pictures_that_a_table_names_are_contents(tmp_path: Path, kind: str) -> None:
    """A picture in the place of another of its name makes a cache stale, as in a folder."""
    (tmp_path / "pictures").mkdir()
    names = ["pictures/a.png", "pictures/b.png", "pictures/missing.png"]
    for name in names[:2]:
        Image.new("RGB", (8, 8), "red").save(tmp_path / name)
    rows = datasets.Dataset.from_dict({"image": names, "text": ["a", "b", "c"]})
    write_as = {"jsonl": rows.to_json, "csv": rows.to_csv, "parquet": rows.to_parquet}[kind]
    write_as(str(tmp_path / f"table.{kind}"))
    hashes = FileHashes()
    settings = table(tmp_path / f"table.{kind}")
    before = data_identity(settings, hashes=hashes)
    assert before == data_identity(settings, hashes=FileHashes(hashes.known))
    Image.new("RGB", (8, 8), "blue").save(tmp_path / "pictures" / "b.png")
    (line,) = differences(before, data_identity(settings, hashes=FileHashes(hashes.known)))
    assert line.startswith("contents.pictures/b.png: ")


def test_tables_that_hold_their_pictures_are_not_read_for_their_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for the first row: they may be large, and ``datasets`` would copy them."""
    files = write_parquet(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "copies")
    found = data_identity(table(tmp_path), hashes=FileHashes())
    assert list(found["contents"]) == [file.name for file in files]
    assert not [*(tmp_path / "copies").rglob("*.arrow")]
