"""report.html: one file, nothing from elsewhere, every text escaped; responses in TensorBoard."""

from __future__ import annotations

import random
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from scope_megatron import cli
from scope_megatron.logging.logger import MetricLogger, ShownResponse, responses_table
from scope_megatron.logging.rollouts import RolloutWriter
from tests.support.viewed_runs import Letters, response, write_metrics, write_responses

HOSTILE = "<script>alert(1)</script>\x1b[31m\x00\u202e</pre><b>\"'| `x` [a](javascript:b)"


class Tags(HTMLParser):
    """The tags of a page, and all of its text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, list[tuple[str, str | None]]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, attrs))

    def handle_data(self, data: str) -> None:
        self.text += data


def read(html: str) -> Tags:
    parser = Tags()
    parser.feed(html)
    return parser


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_metrics(tmp_path, 40)
    write_responses(tmp_path, [5], groups=1, samples=2)
    writer = RolloutWriter(tmp_path, Letters(), (0, 1), 2**30)
    writer.write("train", 10, [response(HOSTILE, 0, 0, random.Random(2), prompt=HOSTILE)])
    return tmp_path


def test_the_report_is_one_file_without_active_parts(run: Path) -> None:
    result = CliRunner().invoke(cli.app, ["report", str(run)])
    assert result.exit_code == 0, result.output
    assert "warning: " in result.stdout, "made-up metrics have something to say"
    html = (run / "report.html").read_text(encoding="utf-8")
    page = read(html)
    kinds = {tag for tag, _ in page.tags}
    assert kinds <= set("html head meta title style body h1 h2 h3 p img pre div span".split())
    links = [value for _, attrs in page.tags for name, value in attrs if name in ("src", "href")]
    assert len(links) == 1 and str(links[0]).startswith("data:image/png;base64,")
    assert "<script>alert(1)</script>" in page.text and "Responses of step 10" in page.text
    assert not re.search("[\x00\x1b\u202e]", html) and "␛[31m␀" in page.text
    assert f"seed: {0}" in page.text, "the settings"


def test_a_run_without_responses_has_a_report(tmp_path: Path) -> None:
    write_metrics(tmp_path, 3)
    (tmp_path / "config.yaml").unlink()
    assert CliRunner().invoke(cli.app, ["report", str(tmp_path)]).exit_code == 0
    assert "Responses" not in read((tmp_path / "report.html").read_text()).text


SHOWN = ShownResponse("1 + 1", HOSTILE, "correct", "correct", 0.25, 9)


def test_a_cell_of_the_table_is_one_cell() -> None:
    *_, row = responses_table([SHOWN]).splitlines()
    assert row.count("|") == 7, "six cells"
    assert not set("<>`*_[]\x1b\x00\u202e") & set(row.replace("<br>", ""))
    assert responses_table([SHOWN]).count("\n") == 2
    assert "&#60;script&#62;" in row and "&#9243;" in row


def test_tensorboard_shows_responses(tmp_path: Path) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    ).EventAccumulator
    with MetricLogger(tmp_path, True, None, {}, enabled=True) as log:
        log.log(5, {"lr": 1.0})
        log.show_responses(5, [SHOWN])
        log.show_responses(6, [])
    events = accumulator(str(tmp_path / "tensorboard")).Reload()
    (shown,) = events.Tensors("responses/text_summary")
    assert shown.step == 5 and b"| 1 &#43; 1 |" in shown.tensor_proto.string_val[0]
