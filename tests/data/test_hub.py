"""Data sets on the hub, which answers as it would: what it is asked for, and what becomes of the rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
from huggingface_hub import constants

from twinflow import hub
from twinflow.data.opening import open_data
from twinflow.data.stream import StreamOrder
from twinflow.errors import TwinflowError
from twinflow.recipes.data import TableData

from .shards import write_parquet
from .test_tables import grey

NAME = "organisation/pictures"


def opened(**more: Any) -> Any:
    return open_data(TableData.model_validate({"kind": "dataset", "path": NAME, "size": 8, **more}), seed=0)


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What ``datasets.load_dataset`` is asked for; it answers with three shards of five rows, as the hub does."""
    files = write_parquet(tmp_path)
    stock, calls = datasets.load_dataset, []

    def load(path: str, **arguments: Any) -> Any:
        calls.append({"path": path, "offline": constants.HF_HUB_OFFLINE, **arguments})
        streaming = arguments["streaming"]
        return stock("parquet", data_files=list(map(str, files)), split="train", streaming=streaming)

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "ask", lambda: None)
    return calls


@pytest.mark.parametrize("streaming", [False, True])
def test_a_data_set_on_the_hub(asked: list[dict[str, Any]], streaming: bool) -> None:
    """Split and options reach ``datasets`` as they are; the rows come as those of files."""
    options = {"name": "large", "revision": "abc"}
    data = opened(split="validation", streaming=streaming, options=options)
    said = {"path": NAME, "split": "validation", "streaming": streaming, "offline": False}
    assert asked == [said | options]
    if streaming:
        assert data.table.rows.num_shards == 3
        order = StreamOrder(data, batch=15, seed=0)
        data = [data[row] for row in order.next_rows()]
    rows = sorted((grey(item), item["caption"]) for item in data)
    assert rows == [(i, f"picture {i}") for i in range(15)]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_hub_that_can_not_be_reached(
    tmp_path: Path, asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    """One error at once, as of models; what was fetched before is opened without asking again."""

    def nobody() -> None:
        raise ConnectionError("nobody is there")

    monkeypatch.setattr(hub, "ask", nobody)
    with pytest.raises(TwinflowError, match=f"^{NAME} is no folder here, and the hub can't be reached"):
        opened(streaming=streaming)
    assert asked == []
    (tmp_path / "cache" / "organisation___pictures").mkdir(parents=True)
    opened(streaming=streaming)
    assert [call["offline"] for call in asked] == [True]
    assert not constants.HF_HUB_OFFLINE


def test_what_the_hub_says_against_it(asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    def load(path: str, **_: Any) -> Any:
        raise datasets.exceptions.DatasetNotFoundError("it is private")

    monkeypatch.setattr(datasets, "load_dataset", load)
    said = (
        f"{NAME} can't be opened: it is no file or folder here, and was looked for on the hub .*it is private"
    )
    with pytest.raises(TwinflowError, match=said):
        opened()
