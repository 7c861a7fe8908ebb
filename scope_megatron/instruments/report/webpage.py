"""A run in one HTML file to send to someone: ``report.html``.

The picture of its curves, the advice on its health, what SCOPE has to work on, its settings, and
some of its responses with coloured tokens. It needs no other file, no network and no script; every
text is escaped.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path
from typing import Any

from scope_megatron import outputs
from scope_megatron.disk import write_atomically
from scope_megatron.instruments.report.figure import History, headline, read_history
from scope_megatron.instruments.report.fit import fit_lines
from scope_megatron.logging.health import Advice, advice
from scope_megatron.logging.logger import visible
from scope_megatron.logging.overlap import hidden_line
from scope_megatron.logging.rollouts import step_of_file

MOST_RESPONSES = 16  # of the last step that was written down
MOST_TOKENS = 600  # of each
FULL = 3.0  # difference of log-probabilities at full colour

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1100px; margin: 24px auto;
  padding: 0 16px }
img { max-width: 100% }
pre { white-space: pre-wrap; overflow-wrap: anywhere; direction: ltr; unicode-bidi: isolate;
  background: #f6f7f9; padding: 8px 10px; border-radius: 6px }
.advice { border-left: 4px solid #0072b2; padding: 4px 12px; margin: 8px 0; background: #f6f7f9 }
.warning { border-color: #b84a00 } .soft { color: #666; font-size: 13px }
.correct { border-left: 4px solid #009e73 } .incorrect { border-left: 4px solid #d55e00 }
td { padding: 1px 14px 1px 0; vertical-align: top; overflow-wrap: anywhere }
"""


def write_html(run_dir: Path) -> list[Advice]:
    """Write ``run_dir``/report.html around the picture that is there; returns the advice in it.

    ValueError when ``run_dir``/metrics.jsonl is missing or holds no metric.
    """
    history = read_history(run_dir / outputs.METRICS)
    told = advice(history.series)
    title = escape(run_dir.resolve().name)
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; img-src data:; "
        "style-src 'unsafe-inline'\">",
        f"<title>{title}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{title}</h1><p>{escape(headline(history))}</p>",
        *_picture(run_dir / outputs.REPORT, "curves of the run"),
        *_timeline(run_dir, history),
        "<h2>Health</h2>",
        *(_advice(item) for item in told),
        "" if told else '<p class="soft">No rule found anything.</p>',
        *_fit(run_dir),
        *_responses(outputs.rollouts_dir(run_dir)),
        *_settings(run_dir / outputs.CONFIG),
        "</body></html>\n",
    ]
    text = "\n".join(part for part in parts if part)
    write_atomically(run_dir / outputs.REPORT_HTML, text.encode("utf-8", "replace"))
    return told


def _picture(path: Path, what: str) -> Iterator[str]:
    if path.is_file():
        data = base64.b64encode(path.read_bytes()).decode()
        yield f'<img alt="{what}" src="data:image/png;base64,{data}">'


def _timeline(run_dir: Path, history: History) -> Iterator[str]:
    """What each rank did in one step, where the run has a trace; what was hidden behind what."""
    told = hidden_line(history.series)
    drawn = list(_picture(run_dir / outputs.TIMELINE, "what each rank did in one step"))
    if told or drawn:
        yield f"<h2>Time line</h2><p>{escape(told or '')}</p>"
        yield from drawn


def _advice(item: Advice) -> str:
    source = f'<div class="soft">{escape(item.source)}</div>'
    return f'<div class="advice {escape(item.level)}">{escape(item.text)}{source}</div>'


def _fit(run_dir: Path) -> Iterator[str]:
    """What SCOPE has to work on, where the run sampled responses."""
    if lines := fit_lines(run_dir):
        yield "<h2>What SCOPE has to work on</h2>" + "".join(
            f"<p>{escape(line)}</p>" for line in lines
        )


def _settings(path: Path) -> Iterator[str]:
    if path.is_file():
        yield f"<h2>Settings</h2><pre>{shown_text(path.read_text(encoding='utf-8'))}</pre>"


def _responses(directory: Path) -> Iterator[str]:
    """The responses of the last step that was written down."""
    found = [path for path in directory.glob("step_*.parquet") if step_of_file(path.name)]
    if not found:
        return
    import pyarrow.parquet as pq

    last = max(found, key=lambda path: (step_of_file(path.name) or 0, path.name))
    rows = pq.ParquetFile(last).read_row_group(0).slice(0, MOST_RESPONSES).to_pylist()
    yield f"<h2>Responses of step {rows[0]['step']}</h2>"
    yield (
        '<p class="soft">Tokens: blue where the teacher finds them more probable than the student, '
        "orange where less.</p>"
    )
    prompt = None
    for row in rows:
        if row["prompt"] != prompt:
            prompt = row["prompt"]
            yield f"<h3>prompt {row['group']}</h3><pre>{shown_text(prompt[:4000])}</pre>"
        yield _response(row)


def _response(row: dict[str, Any]) -> str:
    facts = (
        ("verdict", row["verdict"]),
        ("weight", row["weight"]),
        ("student's perplexity", row["student_perplexity"]),
        ("teacher's perplexity", row["teacher_perplexity"]),
        ("tokens", row["response_tokens"]),
    )
    said = ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in facts
        if value is not None
    )
    more = " …" if len(row["tokens"]) > MOST_TOKENS else ""
    path = escape(row["path"] or "")
    return (
        f'<p class="soft">{escape(said)}</p><pre class="{path}">{"".join(_tokens(row))}{more}</pre>'
    )


def _tokens(row: dict[str, Any]) -> Iterator[str]:
    gaps: Iterable[float | None] = [None] * len(row["tokens"])
    if row["teacher_logprobs"] and row["student_logprobs"]:
        pairs = zip(row["teacher_logprobs"], row["student_logprobs"], strict=True)
        gaps = [teacher - student for teacher, student in pairs]
    for token, gap in list(zip(row["tokens"], gaps, strict=True))[:MOST_TOKENS]:
        text = shown_text(token[:4000])
        if gap is None or not math.isfinite(gap) or abs(gap) < 0.05 * FULL:
            yield text
            continue
        color = "0,114,178" if gap > 0 else "230,130,0"
        strength = min(abs(gap) / FULL, 1.0) * 0.75
        yield f'<span style="background:rgba({color},{strength:.2f})">{text}</span>'


def shown_text(text: str) -> str:
    """Escaped for HTML; control and direction marks visible."""
    return escape("".join(c if c in "\n\t" else visible(c) for c in text))
