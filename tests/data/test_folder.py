"""Folders of pictures: what is read, and that every fault is found before training begins."""

import json
import logging
from pathlib import Path

import pytest
import torch

from twinflow.data.captioned_files import CaptionedFile, CaptionedFiles
from twinflow.data.folder import FolderDataset
from twinflow.errors import TwinflowError

from .files import noise_image, write, write_metadata


def test_pictures_with_text_files(tmp_path):
    write(tmp_path / "b.png", caption=" a red\nsquare \n")
    write(tmp_path / "a.JPG", caption="größer")
    write(tmp_path / "more" / "c.webp")
    (tmp_path / ".hidden.png").write_bytes(b"not a picture")
    dataset = FolderDataset(tmp_path, size=8)
    assert [item["caption"] for item in dataset] == ["größer", "a red\nsquare", "a picture"]
    pixels = dataset[1]["pixels"]
    assert (pixels.dtype, pixels.shape, pixels.is_contiguous()) == (torch.float32, (3, 8, 8), True)
    assert torch.equal(pixels, torch.tensor([1.0, -1, -1]).reshape(3, 1, 1).expand(3, 8, 8))


def test_metadata_keeps_its_order_and_its_captions(tmp_path):
    write(tmp_path / "a.png", caption=None)
    write(tmp_path / "sub" / "b.png", caption=None)
    write_metadata(
        tmp_path, {"file_name": "sub/b.png", "text": "two"}, {"file_name": "a.png", "text": ["one", " uno "]}
    )
    dataset = FolderDataset(tmp_path, size=4)
    assert [file.captions for file in dataset.files] == [("two",), ("one", "uno")]


def test_one_of_several_captions_is_chosen_by_epoch_and_index(tmp_path):
    write(tmp_path / "a.png", caption=None)
    captions = ["one", "two", "three"]
    write_metadata(tmp_path, *[{"file_name": "a.png", "text": captions}] * 200)

    def chosen(epoch, seed=0):
        dataset = FolderDataset(tmp_path, size=4, seed=seed)
        dataset.set_epoch(epoch)
        return [dataset.caption(i) for i in range(200)]

    assert chosen(0) == chosen(0)
    assert len({tuple(chosen(0)), tuple(chosen(1)), tuple(chosen(0, seed=1))}) == 3
    assert all(45 < chosen(0).count(caption) < 90 for caption in captions)


def test_workers_that_outlive_an_epoch_see_the_next_one(tmp_path):
    write(tmp_path / "a.png", caption=None)
    write_metadata(tmp_path, *[{"file_name": "a.png", "text": ["one", "two"]}] * 30)
    dataset = FolderDataset(tmp_path, size=4)
    loader = torch.utils.data.DataLoader(dataset, batch_size=30, num_workers=1, persistent_workers=True)
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        (batch,) = list(loader)
        assert batch["caption"] == [dataset.caption(i) for i in range(30)]


def damage(folder: Path) -> list[str]:
    """One file of each fault, and one sound one; the names that an error must tell."""
    write(folder / "good.png")
    write(folder / "no_caption.png", caption=None)
    write(folder / "blank.png", caption=" \n")
    (folder / "no_picture.txt").write_text("a picture that is not there")
    write(folder / "latin.png")
    (folder / "latin.txt").write_bytes("größer".encode("latin-1"))
    for name in ("cut.jpg", "cut.png", "cut.webp"):
        write(folder / name, noise_image(64, 64))
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])
    write(folder / "text.png")
    (folder / "text.png").write_text("this is not a picture")
    return [
        "no_caption.png",
        "blank.txt",
        "no_picture.txt",
        "latin.txt",
        "cut.jpg",
        "cut.png",
        "cut.webp",
        "text.png",
    ]


def test_every_fault_is_found_when_the_dataset_is_built(tmp_path):
    names = damage(tmp_path)
    with pytest.raises(TwinflowError) as caught:
        FolderDataset(tmp_path, size=8)
    message = str(caught.value)
    assert f"8 of 9 entries of {tmp_path}" in message
    assert sum(name + ":" in message for name in names) == 5
    assert "and 3 more" in message
    assert 'on_error="skip"' in message


@pytest.mark.parametrize("index", range(8))
def test_each_fault_alone_is_named(tmp_path, index):
    names = damage(tmp_path / "all")
    stem = Path(names[index]).stem
    for path in (tmp_path / "all").iterdir():
        if path.suffix in (".png", ".txt", ".jpg", ".webp") and path.stem in (stem, "good"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    for path in (tmp_path / "all").iterdir():
        path.unlink()
    if stem == "cut":  # three files share the stem and its caption: leave one
        for name in {"cut.jpg", "cut.png", "cut.webp"} - {names[index]}:
            (tmp_path / name).unlink()
    with pytest.raises(TwinflowError, match=rf"(?s)1 of 2 .*  {names[index]}: .*: \w+"):
        FolderDataset(tmp_path, size=8)


def test_skip_leaves_them_out_and_logs_every_name(tmp_path, caplog):
    names = damage(tmp_path)
    with caplog.at_level(logging.WARNING):
        dataset = FolderDataset(tmp_path, size=8, on_error="skip")
    assert [file.path.name for file in dataset.files] == ["good.png"]
    assert all(name + ":" in caplog.text for name in names)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"file_name": "gone.png", "text": "a"}', ["gone.png", "missing"]),
        ('{"file_name": "a.png", "text": ""}', ["a.png", "empty"]),
        ('{"file_name": "a.png", "text": []}', ["a.png", "empty"]),
        ('{"file_name": "a.png", "text": ["x", " "]}', ["a.png", "empty"]),
        ('{"file_name": "a.png", "text": 3}', ["a.png", "list of captions"]),
        ('{"file_name": "a.png"}', ['"text"']),
        ('["a.png", "x"]', ['"file_name"']),
        ('{"file_name": ', ["not JSON"]),
    ],
)
def test_faults_of_metadata_name_the_line(tmp_path, line, words):
    write(tmp_path / "a.png", caption=None)
    good = json.dumps({"file_name": "a.png", "text": "fine"})
    (tmp_path / "metadata.jsonl").write_text(f"{good}\n\n{line}\n")
    with pytest.raises(TwinflowError) as caught:
        FolderDataset(tmp_path, size=8)
    for word in ["1 of 2", "metadata.jsonl line 3", *words]:
        assert word in str(caught.value)
    assert len(FolderDataset(tmp_path, size=8, on_error="skip")) == 1


def test_metadata_may_name_files_elsewhere(tmp_path):
    write(tmp_path / "pictures" / "a.png", caption=None)
    (tmp_path / "pictures" / "bad.png").write_text("not a picture")
    (tmp_path / "list").mkdir()
    names = ["../pictures/a.png", str(tmp_path / "pictures" / "bad.png")]
    write_metadata(tmp_path / "list", *[{"file_name": name, "text": "x"} for name in names])
    with pytest.raises(TwinflowError, match=r"\.\./pictures/bad\.png"):
        FolderDataset(tmp_path / "list", size=8)


def test_empty_and_missing_folders(tmp_path):
    with pytest.raises(TwinflowError, match="no usable picture"):
        FolderDataset(tmp_path, size=8)
    with pytest.raises(TwinflowError, match="is not a folder"):
        FolderDataset(tmp_path / "nowhere", size=8)
    write(tmp_path / "a.png", caption="")
    with pytest.raises(TwinflowError, match="no usable picture"):
        FolderDataset(tmp_path, size=8, on_error="skip")


def test_arguments(tmp_path):
    for size in (0, (8,), (8, 0), (8.0, 8)):
        with pytest.raises(ValueError, match="size"):
            FolderDataset(tmp_path, size=size)
    with pytest.raises(ValueError, match=r"on_error.*'ignore'"):
        FolderDataset(tmp_path, size=8, on_error="ignore")
    write(tmp_path / "a.png")
    with pytest.raises(IndexError):
        FolderDataset(tmp_path, size=8)[1]


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ("größer".encode("latin-1"), "not UTF-8"),
        ("a cat".encode("utf-16-le"), "NUL"),
        (b"\xef\xbb\xbf \r\n", "empty"),
    ],
)
def test_captions_that_are_no_text(tmp_path, raw, words):
    write(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(raw)
    with pytest.raises(TwinflowError, match=rf"a.txt: .*{words}"):
        FolderDataset(tmp_path, size=8)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"file_name": "a.png", "text": "größer"}'.encode("latin-1"), "not UTF-8"),
        (b'{"file_name": "a.png", "text": "one", "text": "two"}', '"text" more than once'),
        (b'{"file_name": "a.png", "text": "half \\ud800"}', "surrogate"),
        (b'{"file_name": "a.png", "text": "a\\u0000b"}', "NUL"),
        (b'{"file_name": "", "text": "one"}', "must be"),
        (b'{"file_name": "' + b"a" * 5000 + b'", "text": "one"}', "missing"),
    ],
)
def test_lines_of_metadata_that_are_no_text(tmp_path, line, words):
    write(tmp_path / "a.png", caption=None)
    (tmp_path / "metadata.jsonl").write_bytes(b'{"file_name": "a.png", "text": "fine"}\r\n' + line)
    with pytest.raises(TwinflowError, match=rf"metadata.jsonl line 2: .*{words}"):
        FolderDataset(tmp_path, size=8)
    assert [item["caption"] for item in FolderDataset(tmp_path, size=8, on_error="skip")] == ["fine"]


def test_only_a_line_feed_ends_a_line_of_metadata(tmp_path):
    write(tmp_path / "a.png", caption=None)
    caption = "one\u2028two\x85three"
    line = json.dumps({"file_name": "a.png", "text": caption}, ensure_ascii=False)
    (tmp_path / "metadata.jsonl").write_bytes(b"\xef\xbb\xbf\r\n" + line.encode() + b"\r\n")
    assert [item["caption"] for item in FolderDataset(tmp_path, size=8)] == [caption]


def test_headers_alone(tmp_path):
    """What is cut off is not seen at the start, and named when it is reached; what is no picture is seen."""
    for name in ("a.png", "b.jpg"):
        write(tmp_path / name, noise_image(64, 64))
    raw = (tmp_path / "b.jpg").read_bytes()
    (tmp_path / "b.jpg").write_bytes(raw[: len(raw) // 2])
    data = FolderDataset(tmp_path, size=8, check="headers")
    assert data[0]["pixels"].shape == (3, 8, 8)
    with pytest.raises(TwinflowError, match=r"b.jpg cannot be read \(.*truncated"):
        data[1]
    (tmp_path / "b.jpg").write_text("no picture")
    with pytest.raises(TwinflowError, match=r"1 of 2.*\n.*b.jpg: .*Unidentified"):
        FolderDataset(tmp_path, size=8, check="headers")


def test_a_picture_that_is_gone_is_named(tmp_path):
    write(tmp_path / "a.png")
    data = FolderDataset(tmp_path, size=8)
    (tmp_path / "a.png").unlink()
    with pytest.raises(TwinflowError, match=r"a.png cannot be read \(FileNotFoundError"):
        data[0]


def test_listed_files_are_held_as_bytes(tmp_path):
    """Of names of any kind and captions; less than two thirds of what is in them is added."""
    files = [
        CaptionedFile(
            path=None if i % 3 == 0 else tmp_path / f"\udcff {i:06}.png",
            captions=(f"a photograph, number {i}", "größer")[: 1 + i % 2],
            source=tmp_path / f"{i}.png" if i % 3 != 1 else None,
        )
        for i in range(1000)
    ]
    held = CaptionedFiles(files)
    assert list(held) == files
    assert held[5:7] == files[5:7]
    assert held[-1] == files[-1]
    content = sum(len(str(p)) for f in files for p in (f.path, f.source) if p)
    content += sum(len(caption) for f in files for caption in f.captions)
    arrays = (held._paths, held._sources, held._captions)
    assert sum(array.nbytes for array in arrays) < content * 5 / 3
