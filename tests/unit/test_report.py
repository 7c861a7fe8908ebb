from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import pytest
from matplotlib.figure import Figure

from scope_megatron.instruments.report.figure import PANELS, draw, read_history, write_report


def full_step(step: int) -> dict[str, float]:
    """All metrics the picture can show, for one step."""
    return {
        "step": step,
        "reward/mean": 0.1 * step,
        "path/correct": step,
        "path/incorrect": 8 - step,
        "path/masked": 0,
        "perplexity/student_correct": 1.1,
        "perplexity/student_incorrect": 1.5,
        "perplexity/teacher_incorrect": 12.0,
        "weight/student_spread": 1.2,
        "weight/teacher_spread": 3.0,
        "loss/total": 1.0 / step,
        "grad_norm": 0.5,
        "mismatch/mean_abs_prob": 1e-6,
        "time/rollout": 1.0,
        "time/train": 2.0,
        "eval/avg@8": 0.1 * step,
        "eval/pass@8": 0.11 * step,
    }


def write(run_dir: Path, rows: list[dict]) -> Path:
    path = run_dir / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def drawn(path: Path) -> tuple[Figure, list[str]]:
    """The figure of a metrics file and all text in it."""
    figure = Figure(figsize=(14, 9), dpi=100)
    draw(figure, read_history(path), "my-run")
    return figure, [text.get_text() for text in figure.texts]


def test_a_whole_run_gives_a_picture_with_every_panel(tmp_path: Path) -> None:
    rows = [{"step": 0, "eval/avg@8": 0.05, "eval/pass@8": 0.1}]
    path = write(tmp_path, rows + [full_step(step) for step in range(1, 8)])
    picture = write_report(tmp_path)
    assert picture == tmp_path / "report.png"
    pixels = matplotlib.image.imread(picture)
    assert pixels.shape[:2] == (900, 1400)
    assert pixels[..., :3].std() > 0.05, "an empty picture"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["metrics.jsonl", "report.png"]

    figure, texts = drawn(path)
    assert {title for title, _, _ in PANELS} < set(texts)
    assert (
        "7 steps  ·  reward 10.0 → 70.0 %  ·  Avg@8 5.0 → 70.0 %  ·  Pass@8 10.0 → 77.0 %" in texts
    )
    accuracy = figure.axes[0]
    curves = {line.get_label(): list(line.get_ydata()) for line in accuracy.get_lines()}
    assert curves["Avg@8"] == pytest.approx([5, 10, 20, 30, 40, 50, 60, 70])
    assert curves["rollout reward"] == pytest.approx([10, 20, 30, 40, 50, 60, 70])


def test_nothing_in_the_picture_overlaps(tmp_path: Path) -> None:
    """Axes with their labels, legends and titles stay out of each other and in the picture."""
    path = write(tmp_path, [full_step(step) for step in range(1, 8)])
    figure, _ = drawn(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [axes.get_tightbbox(renderer) for axes in figure.axes]
    boxes += [text.get_window_extent(renderer) for text in figure.texts]
    for index, box in enumerate(boxes):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= 1400 and box.y1 <= 900
        for other in boxes[index + 1 :]:
            assert not box.padded(-1).overlaps(other.padded(-1))


def test_missing_series_bad_lines_and_nan_are_left_out_and_named(tmp_path: Path) -> None:
    steps = [full_step(step) for step in (1, 2)]
    kept = [{k: v for k, v in s.items() if not k.startswith(("perp", "weight"))} for s in steps]
    kept[1]["loss/total"] = None
    kept[1]["loss/total.nonfinite"] = "nan"
    path = write(tmp_path, kept)
    with path.open("ab") as file:
        file.write(b'\n[1]\n\xff\xfe\n{"step": 3, "rew')
    history = read_history(path)
    assert history.skipped == 4
    assert history.series("loss/total") == ([1], [1.0])
    _, texts = drawn(path)
    assert "Perplexity" not in texts and "Accuracy" in texts
    assert texts[2] == (
        "Not logged in this run: perplexity, weight spread in a group.  "
        "NaN or infinite: loss/total (1 step).  4 unreadable lines of metrics.jsonl skipped"
    )
    write_report(tmp_path)


@pytest.mark.parametrize(
    "rows",
    [
        [full_step(1)],
        [{"step": 0, "eval/avg@8": 0.0}],
        [{"step": 5, "lr": 1.0}],
        [{"step": 1, "weight/teacher_spread": 1.0}, {"step": 2, "grad_norm": 0.0}],
        [full_step(1 + step % 7) | {"step": 1 + step} for step in range(3000)],
    ],
    ids=["one step", "evaluation only", "nothing to draw", "few series", "3000 steps"],
)
def test_any_run_gives_a_picture(tmp_path: Path, rows: list[dict]) -> None:
    write(tmp_path, rows)
    assert write_report(tmp_path).stat().st_size > 1000


def test_a_step_logged_twice_is_one_point_the_later_wins(tmp_path: Path) -> None:
    path = write(
        tmp_path, [{"step": 2, "a": 1.0}, {"step": 1, "a": 0.0}, {"step": 2, "a": 5, "b": 1}]
    )
    assert read_history(path).series("a") == ([1, 2], [0.0, 5.0])


@pytest.mark.parametrize("content", [None, "", "\n{\n", '{"step": 1}\n'])
def test_no_metrics_is_one_clear_line(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(ValueError, match="no metrics to report: .*metrics.jsonl") as error:
        write_report(tmp_path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "report.png").exists()


def test_a_report_needs_no_torch(tmp_path: Path) -> None:
    write(tmp_path, [full_step(1)])
    code = (
        "import sys; from scope_megatron.instruments.report.figure import write_report; "
        f"write_report({str(tmp_path)!r}); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
