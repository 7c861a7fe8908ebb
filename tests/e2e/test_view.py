"""The page in a real browser: a run while it trains, filters, and text that means harm."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scope_megatron.logging.rollouts import RolloutWriter
from tests.support.browser import browser, chromium, opened, served
from tests.support.traces import write_trace
from tests.support.viewed_runs import Letters, response, write_metrics, write_responses

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.timeout(280),
    pytest.mark.skipif(chromium() is None, reason="no Chromium: apt-get install chromium"),
]
HOSTILE = {
    "script": "<script>document.title='owned'</script><img src=x onerror=alert(1)>",
    "terminal": "\x1b[31mred\x1b]0;title\x07\x00end",
    "direction": "abc\u202edcba\u202c \u2066x\u2069\u200f",
    "line": "x" * 1_000_000 + "END",
    "entity": "&lt;b&gt; {{7*7}} ${7*7} </pre></article>",
}
WAIT_MS = 60_000


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A real run of one rank, that trains while the other tests look at the page."""
    output = tmp_path_factory.mktemp("live") / "live"
    settings = [
        f"output_dir={output}",
        "parallel.tensor=1",
        "parallel.data=1",
        "train.steps=400",
        "rollout.prompts_per_step=4",
        "rollout.group_size=4",
        "evaluation.before=false",
        "evaluation.every=0",
        "checkpoint.every=0",
        "logging.tensorboard=false",
        "logging.rollouts.every=1",
        "logging.rollouts.alternatives=3",
    ]
    command = [sys.executable, "-m", "scope_megatron", "train", "configs/quickstart.yaml"]
    process = subprocess.Popen(
        [*command, *settings],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # ended with its verifiers
    )
    yield output
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def chrome() -> Iterator[Any]:
    with browser() as started:
        yield started


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs; the first has responses, hostile ones among them."""
    folder = tmp_path_factory.mktemp("made")
    for number, name in enumerate(("first", "<b>second</b>")):
        write_metrics(folder / name.replace("/", "∕"), 80, seed=number)
    write_responses(folder / "first", [5, 10], groups=3, samples=4)
    write_trace(folder / "first", [3, 4])
    writer, draw = RolloutWriter(folder / "first", Letters(), (0, 1), 2**30), random.Random(3)
    for step, (name, text) in enumerate(HOSTILE.items(), 20):
        prompt = f"{name}: {text[:2000]}"
        writer.write("train", step, [response(text, 0, 0, draw, prompt)])
    return folder


@pytest.fixture(scope="module")
def page(chrome: Any, made: Path) -> Iterator[Any]:
    """The page of the two runs; nothing may be said on its console."""
    said: list[str] = []
    with served(made) as address:
        page = opened(chrome, address, said)
        yield page
        page.close()
    assert said == []


def test_it_opens_with_curves_of_both_runs(trained: Path, page: Any) -> None:
    """And the other run begins to train meanwhile."""
    assert page.locator(".chip").count() == 2
    assert "<b>second<∕b>" in page.locator("#runs").inner_text()
    chart = page.locator(".chart[data-name='reward/mean']")
    chart.scroll_into_view_if_needed()
    box = chart.locator("canvas").bounding_box()
    page.mouse.move(box["x"] + 200, box["y"] + 60)
    tip = chart.locator(".tip").inner_text()
    assert "step" in tip and "first:" in tip and "second" in tip
    page.mouse.down()
    page.mouse.move(box["x"] + 260, box["y"] + 60)
    page.mouse.up()
    assert page.locator("#unzoom").is_enabled(), "dragging zooms"
    page.click("#unzoom")
    assert page.locator("#unzoom").is_disabled()


def test_filters(page: Any) -> None:
    page.click("button[data-tab=responses]")
    page.wait_for_selector(".entry")
    assert page.input_value("select[name=run]") == "1", "the first run that has responses"
    page.fill("input[name=last]", "10")
    page.wait_for_selector("#found:text-matches('24 responses in 6 groups')")
    choose(page, "path", "incorrect")
    assert "24 responses" not in page.locator("#found").inner_text()
    choose(page, "order", "disagree")
    gaps = [float(text.split("gap ")[1].split()[0]) for text in titles(page)]
    assert gaps == sorted(gaps, reverse=True) and len(gaps) > 2
    page.click("#groups .entry:first-child")
    page.wait_for_selector(".response")
    assert page.locator(".response").count() == 4, "the responses of a prompt side by side"
    page.locator(".response.incorrect .token").nth(2).click()
    detail = page.locator("#detail").inner_text()
    assert "teacher − student" in detail and "p = " in detail
    page.wait_for_selector(".alternatives table[data-of=teacher]")
    student = page.locator(".alternatives table[data-of=student] td:first-child")
    assert student.all_inner_texts()[1] == '" "'
    assert page.locator(".alternatives tr.chosen").count() == 1, "the token that was sampled"
    theirs = page.locator(".alternatives table[data-of=teacher] td:first-child").first
    assert theirs.inner_text() == '"\\u001b"', "text of a model is data here too"
    shades = page.locator(".response.incorrect .token").evaluate_all(
        "spans => spans.map(span => span.style.backgroundColor).filter(Boolean).length"
    )
    assert shades > 5, "tokens are coloured"


def choose(page: Any, name: str, value: str) -> None:
    """Set a filter and wait for its answer."""
    before = page.get_attribute("#groups", "data-ready")
    page.select_option(f"select[name={name}]", value)
    page.wait_for_selector(f"#groups:not([data-ready='{before}'])")


def titles(page: Any) -> list[str]:
    return page.locator("#groups .entry .hint").all_inner_texts()


@pytest.mark.parametrize(("step", "name"), list(enumerate(HOSTILE, 20)))
def test_hostile_text_is_text(page: Any, step: int, name: str) -> None:
    text = HOSTILE[name]
    page.click("button[data-tab=responses]")
    page.select_option("select[name=run]", label="first")
    page.select_option("select[name=path]", "")
    page.fill("input[name=first]", str(step))
    page.fill("input[name=last]", str(step))
    page.click(f".entry[data-key*=',{step},']")
    page.wait_for_selector(f".prompt .text:text-matches('^{name}: ')")
    shown = page.locator(".response .text").inner_text()
    assert page.title() == "scope_megatron"
    assert page.locator("script:not([src]), img, .response pre").count() == 0
    if name in ("script", "entity"):
        assert shown == text
    elif name == "terminal":
        marks = page.locator(".response .ctl").all_inner_texts()
        assert marks == ["␛", "␛", "␇", "␀"] and "[31mred" in shown
    elif name == "direction":
        assert "\u202e" not in shown and "\u2066" not in shown
        assert "U+202E" in shown and page.locator(".response .ctl").count() == 5
    else:
        assert 1000 < len(shown) < 10_000, "a line of a megabyte is cut until asked for"
        assert "tokens" in page.locator(".response .text button").inner_text()


def test_time_line_health_and_configuration(page: Any) -> None:
    page.click("button[data-tab=timeline]")
    page.wait_for_selector("#timeline table")
    assert "resume" in page.locator("#timeline").inner_text()
    picture = page.locator(".traced img")
    width = "image => image.decode().then(() => image.naturalWidth)"
    assert picture.evaluate(width) == 1400, "a step of the trace"
    page.select_option(".traced select", "3")
    assert picture.get_attribute("src") == "/api/timeline?run=1&step=3"
    assert picture.evaluate(width) == 1400
    page.click("button[data-tab=health]")
    assert "<b>second" in page.locator("#health").inner_text()
    page.click("button[data-tab=config]")
    page.wait_for_selector("#config tr.differs")
    assert page.locator("#config tr.differs td").first.inner_text() == "seed"


def test_a_run_is_followed_while_it_trains(trained: Path, chrome: Any) -> None:
    deadline = time.monotonic() + 200
    metrics, said = trained / "metrics.jsonl", list[str]()
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= 2):
        assert time.monotonic() < deadline, "the run did not start"
        time.sleep(0.2)
    with served(trained) as address:
        page = opened(chrome, address, said)
        first = int(page.get_attribute("body", "data-drawn"))
        assert "running" in page.locator(".chip").inner_text()
        page.wait_for_selector(f"body:not([data-drawn='{first}'])", timeout=WAIT_MS)
        assert int(page.get_attribute("body", "data-drawn")) > first >= 2
        page.click("button[data-tab=responses]")
        page.wait_for_selector(".entry", timeout=WAIT_MS)
        newest = titles(page)[0]
        page.wait_for_selector(
            f"#groups .entry:first-child .hint:not(:text-is({json.dumps(newest)}))", timeout=WAIT_MS
        )
        page.click("#groups .entry:first-child")
        page.wait_for_selector(".response")
        assert page.locator(".response").count() == 4
        page.locator(".response .token").first.click()
        for whose in ("student", "teacher"):
            page.wait_for_selector(f".alternatives table[data-of={whose}] tr:nth-child(4)")
        page.close()
    assert said == []
