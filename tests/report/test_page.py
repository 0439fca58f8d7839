"""The page is one well-formed file that asks for nothing, and says what the table says."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from twinflow.report import write_report

from .conftest import make_row, make_table

VOID = {"meta", "img", "br"}


class Checker(HTMLParser):
    """Elements are closed in the order in which they were opened; ids are unique."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.images: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)
        assert not self.open
        assert len(self.ids) == len(set(self.ids))

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        if "id" in values:
            self.ids.append(values["id"])
        if tag == "img":
            self.images.append(values["src"])
        self.links += [values[name] for name in ("href", "xlink:href") if name in values]

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def metrics(tmp_path):
    file = tmp_path / "metrics.jsonl"
    lines = [f'{{"step": {i}, "loss": {2 / i}, "loss/fake": {1 / i}}}' for i in range(1, 30)]
    file.write_text("\n".join(lines))
    return file


def test_the_page_is_well_formed_and_self_contained(folder, table, metrics):
    files = write_report(folder, table, losses={"run a": metrics, "run b": metrics}, facts={"steps": 5})
    text = files.html.read_text()
    page = Checker(text)
    assert page.images
    assert all(src.startswith("data:image/") for src in page.images)
    assert all(link.startswith("#") for link in page.links)
    assert "script" not in page.tags
    for part in ("80 % of the score", "0.760", "±0.020", "twinflow eval a b", "run b", "✓", "✗"):
        assert part in text
    assert files.markdown.read_text().startswith("# ")


def test_plots_are_xml_in_the_page_s_colours(folder, table, metrics):
    text = write_report(folder, table, losses={"run": metrics}).html.read_text()
    plots = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert len(plots) == 3
    for plot in plots:
        ElementTree.fromstring(plot)
        assert "var(--rule)" in plot
        assert "#0a0b" not in plot  # every stand-in has become a variable


def test_the_same_table_gives_the_same_page(folder, table):
    first, second = (write_report(folder, table).html.read_text() for _ in range(2))
    assert re.sub(r"<svg.*?</svg>", "", first, flags=re.DOTALL) == re.sub(
        r"<svg.*?</svg>", "", second, flags=re.DOTALL
    )


EVIL = '<script>alert("x")</script>&$x_1$'


def test_everything_is_escaped(folder, metrics):
    row, other = make_row("base", 1, 0.5, tasks={EVIL: 0.5}), make_row(EVIL, 1, 0.5, tasks={EVIL: 0.4})
    for each in (row, other):
        each.samples.append({"prompt": EVIL, "file": "none.png", "correct": None})
    table = make_table(row, other, **{EVIL: EVIL})
    table.benchmark = EVIL
    files = write_report(folder, table, losses={EVIL: metrics}, title=EVIL, facts={EVIL: EVIL})
    text = files.html.read_text()
    Checker(text)
    assert "<script" not in text
    assert "<script" not in files.markdown.read_text()
    assert "missing" in text  # the picture


def test_a_table_of_numbers_alone(tmp_path):
    bare = {"held_out": None, "diversity": None, "seconds_per_image": None, "tasks": {}}
    files = write_report(tmp_path / "new", make_table(make_row("base", 1, 0.0, **bare)))
    Checker(files.html.read_text())


def test_an_empty_table_writes_nothing(tmp_path):
    with pytest.raises(ValueError, match="no rows"):
        write_report(tmp_path, make_table())
    assert not list(tmp_path.iterdir())
