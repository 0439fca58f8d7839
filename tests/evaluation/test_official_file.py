"""Files of the authors: from the cache, else fetched once and checked, else one error. No network but our own."""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import json
import tarfile
import threading
from dataclasses import replace

import pytest

from evaluation.official import DPG, GENEVAL, needs_dpg, needs_geneval
from twinflow.errors import TwinflowError
from twinflow.evaluation.dpg import prompts as dpg
from twinflow.evaluation.geneval import GenEval
from twinflow.evaluation.geneval import prompts as geneval
from twinflow.evaluation.official_file import OfficialFile

CONTENT = b'{"tag": "of our own"}\n'


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TWINFLOW_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def server(tmp_path):
    """The address of a folder, and the paths that were asked for."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            asked.append(self.path)

    (tmp_path / "site").mkdir()
    handler = functools.partial(Handler, directory=tmp_path / "site")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", tmp_path / "site", asked
        running.shutdown()
        thread.join()


def official(*urls: str, content: bytes = CONTENT) -> OfficialFile:
    return OfficialFile(
        benchmark="ours",
        name="lines.jsonl",
        urls=urls,
        sha256=hashlib.sha256(content).hexdigest(),
        option="--with ours.prompts=FILE",
    )


def test_it_is_fetched_once_and_nothing_else_is_left(server, cache):
    address, site, asked = server
    (site / "lines.jsonl").write_bytes(CONTENT)
    file = official(f"{address}/lines.jsonl")
    assert file.path() == cache / "ours" / "lines.jsonl"
    count = len(asked)
    assert file.path().read_bytes() == CONTENT
    assert len(asked) == count > 0
    assert [path.name for path in (cache / "ours").iterdir()] == ["lines.jsonl"]


def test_a_copy_in_the_cache_needs_no_address(cache):
    (cache / "ours").mkdir(parents=True)
    (cache / "ours" / "lines.jsonl").write_bytes(CONTENT)
    assert official("file:///nowhere").path().read_bytes() == CONTENT


def test_the_hash_decides_and_not_the_address(tmp_path, server, cache):
    address, site, _ = server
    (site / "lines.jsonl").write_bytes(CONTENT + b"one more")
    (tmp_path / "lines.jsonl").write_bytes(CONTENT)
    wrong, right = f"{address}/lines.jsonl", (tmp_path / "lines.jsonl").as_uri()
    with pytest.raises(TwinflowError, match="its content is not the official file's"):
        official(wrong).path()
    assert not (cache / "ours").exists()
    assert official(f"{address}/absent", wrong, right).path().read_bytes() == CONTENT
    # something else under its name is replaced
    official(right).cached.write_bytes(CONTENT[:7])
    with pytest.raises(TwinflowError, match="is not the official one"):
        official(wrong).path()
    assert official(right).path().read_bytes() == CONTENT


def test_offline_one_error_names_file_address_and_option(server, cache):
    address, _, _ = server
    with pytest.raises(TwinflowError) as error:
        official(f"{address}/lines.jsonl").path()
    told = str(error.value)
    for part in (str(cache / "ours" / "lines.jsonl"), f"{address}/lines.jsonl", "--with ours.prompts=FILE"):
        assert part in told
    assert "404" in told


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "source").write_bytes(CONTENT)
    monkeypatch.setenv("TWINFLOW_CACHE", str(tmp_path / "source"))  # a file
    with pytest.raises(TwinflowError, match="Set TWINFLOW_CACHE"):
        official((tmp_path / "source").as_uri()).path()


def archive(texts: dict[str, str], *, name: str = "ELLA-3c228f1") -> bytes:
    """A repository as GitHub packs it."""
    buffer = io.BytesIO()
    files = {f"dpg_bench/prompts/{item}.txt": text for item, text in texts.items()}
    files |= {"README.md": "ELLA", "prompts.txt": "another one", "dpg_bench/dpg_bench.csv": "item_id"}
    with tarfile.open(fileobj=buffer, mode="w:gz") as packed:
        for path, text in files.items():
            entry = tarfile.TarInfo(f"{name}/{path}")
            entry.size = len(text.encode())
            packed.addfile(entry, io.BytesIO(text.encode()))
    return buffer.getvalue()


def test_prompts_are_read_out_of_an_archive(tmp_path):
    packed = archive({"b2": "zwei “Äpfel”\n", "a10": "one"})
    lines = dpg.prompts_of_archive(packed).decode()
    assert [json.loads(line) for line in lines.splitlines()] == [
        {"item_id": "a10", "text": "one"},
        {"item_id": "b2", "text": "zwei “Äpfel”"},
    ]
    (tmp_path / "a.tar.gz").write_bytes(packed[: len(packed) // 2])
    (tmp_path / "b.tar.gz").write_bytes(b"<html>")
    for name in ("a.tar.gz", "b.tar.gz"):
        file = replace(dpg.OFFICIAL, urls=((tmp_path / name).as_uri(),))
        with pytest.raises(TwinflowError, match=r"--with dpg.prompts=FILE"):
            file.path()


@needs_geneval
def test_geneval_fetches_its_553_prompts(monkeypatch):
    monkeypatch.setattr(geneval, "OFFICIAL", replace(geneval.OFFICIAL, urls=(GENEVAL.resolve().as_uri(),)))
    suite = GenEval()
    assert len(suite.prompts()) == 553
    assert suite.prompt_file.official
    assert suite.protocol()["benchmark"] == "GenEval"


@needs_dpg
def test_dpg_reads_its_1065_prompts_out_of_the_archive(tmp_path, monkeypatch):
    texts = {row["item_id"]: row["text"] + "\n" for row in map(json.loads, DPG.read_text().splitlines())}
    (tmp_path / "ella.tar.gz").write_bytes(archive(texts))
    monkeypatch.setattr(dpg, "OFFICIAL", replace(dpg.OFFICIAL, urls=((tmp_path / "ella.tar.gz").as_uri(),)))
    prompts = dpg.official_prompts()
    assert prompts.official
    assert len(prompts) == 1065
    assert dpg.OFFICIAL.cached.read_bytes() == DPG.read_bytes()
