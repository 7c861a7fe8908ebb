"""How fast `view` opens a large run and answers a filter, in a real browser.

    python -m benchmarks.bench_view [--steps 10000] [--responses 100000] [--keep DIR]

Makes a run of so many steps and responses (32 to a file, as logging.rollouts has them by default),
starts `scope-megatron view` on it, and opens the page in Chromium. "opens" is from the browser's
request of the page until its curves are drawn, by a server that has read nothing yet; a "filter" is
from the choice in the form until the list of groups is there.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from tests.support.browser import browser, opened, served
from tests.support.viewed_runs import write_metrics, write_responses

GROUPS, SAMPLES = 4, 8
FILTERS = (
    ("path", "incorrect"),
    ("order", "disagree"),
    ("verdict", "incorrect"),
    ("order", "heaviest"),
    ("path", "correct"),
    ("verdict", ""),
    ("order", "longest"),
)


def make(output: Path, steps: int, responses: int) -> None:
    """The run, unless it is there."""
    if (output / "metrics.jsonl").exists():
        return
    write_metrics(output, steps)
    files = responses // (GROUPS * SAMPLES)
    write_responses(output, [1 + n * steps // files for n in range(files)], GROUPS, SAMPLES)


def measure(output: Path) -> tuple[float, list[float], float]:
    """Seconds until the page is open, of each filter, and until a group's tokens are there."""
    said: list[str] = []
    with served(output) as address, browser() as started:
        begun = time.perf_counter()
        page = opened(started, address, said)
        first = time.perf_counter() - begun
        page.click("button[data-tab=responses]")
        page.wait_for_selector(".entry")
        seconds = []
        for name, value in FILTERS:
            before = page.get_attribute("#groups", "data-ready")
            begun = time.perf_counter()
            page.select_option(f"select[name={name}]", value)
            page.wait_for_selector(f"#groups:not([data-ready='{before}'])")
            seconds.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        page.click(".entry >> nth=3")
        page.wait_for_selector(".response")
        group = time.perf_counter() - begun
    assert not said, said
    return first, seconds, group


def main() -> None:
    """Print one line per figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--responses", type=int, default=100_000)
    parser.add_argument("--keep", type=Path, help="where the run is made, and found again")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        output = options.keep or Path(directory) / "large"
        make(output, options.steps, options.responses)
        first, filters, group = measure(output)
    print(f"{options.steps} steps, {options.responses} responses")
    print(f"opens in {first:.2f} s; filters {', '.join(f'{s:.2f}' for s in filters)} s")
    print(f"slowest filter {max(filters):.2f} s; a group's tokens {group:.2f} s")


if __name__ == "__main__":
    main()
