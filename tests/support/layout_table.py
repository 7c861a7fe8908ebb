"""The layouts whose updates a test run compared with transformers: a table at its end."""

from __future__ import annotations

_WORST: dict[str, list[float]] = {}  # layout -> relative errors: loss, norm of the gradient


def note(layout: str, loss: float, grad_norm: float) -> None:
    """Keep the errors of one update; a layout keeps the largest of its updates."""
    worst = _WORST.setdefault(layout, [0.0, 0.0])
    worst[:] = [max(worst[0], abs(loss)), max(worst[1], abs(grad_norm))]


def lines() -> list[str]:
    """A row per layout, in the order of their first updates; nothing where none was compared."""
    if not _WORST:
        return []
    width = max(map(len, _WORST))
    head = f"{'layout':{width}}  loss     gradient norm   (relative to transformers in float64)"
    return [head, *(f"{name:{width}}  {a:.1e}  {b:.1e}" for name, (a, b) in _WORST.items())]
