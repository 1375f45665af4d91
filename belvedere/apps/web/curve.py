"""A loss as a curve: every value thin, their running mean bold."""

from collections.abc import Sequence

WIDTH, HEIGHT = 600, 130
LEFT, BOTTOM, TOP = 44, 26, 10
SMOOTH = 0.8
"""How much of the running mean each value leaves."""


def loss_curve(losses: Sequence[tuple[int, float]], steps: int) -> str:
    """Return an SVG of (step, loss), the whole way to ``steps`` along its width; "" for fewer than two values."""
    if len(losses) < 2:
        return ""
    low, high = min(loss for _, loss in losses), max(loss for _, loss in losses)
    span = max(high - low, 1e-9)

    def place(step: int, loss: float) -> str:
        x = LEFT + (WIDTH - LEFT - 4) * step / max(steps, losses[-1][0])
        y = TOP + (HEIGHT - TOP - BOTTOM) * (high - loss) / span
        return f"{x:.1f},{y:.1f}"

    each = " ".join(place(step, loss) for step, loss in losses)
    means = " ".join(place(step, loss) for (step, _), loss in zip(losses, running_mean(losses), strict=True))
    text = 'fill="currentColor" font-size="12" opacity=".7"'
    base = HEIGHT - BOTTOM
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="The loss, now {losses[-1][1]:.4f}" '
        'style="width:100%;height:auto;display:block">'
        f'<path d="M{LEFT} {TOP}V{base}H{WIDTH - 4}" fill="none" stroke="var(--border-color-primary)"/>'
        f'<text x="{LEFT - 6}" y="{TOP + 10}" text-anchor="end" {text}>{high:.2f}</text>'
        f'<text x="{LEFT - 6}" y="{base}" text-anchor="end" {text}>{low:.2f}</text>'
        f'<text x="{LEFT}" y="{HEIGHT - 6}" {text}>0</text>'
        f'<text x="{WIDTH - 4}" y="{HEIGHT - 6}" text-anchor="end" {text}>{steps} steps</text>'
        f'<polyline points="{each}" fill="none" stroke="var(--slider-color)" stroke-width="1" opacity=".45"/>'
        f'<polyline points="{means}" fill="none" stroke="var(--slider-color)" stroke-width="2.5"/></svg>'
    )


def running_mean(losses: Sequence[tuple[int, float]]) -> list[float]:
    """Return the exponential running mean of the losses, each weighted as if it had always run."""
    means, total, weight = [], 0.0, 0.0
    for _, loss in losses:
        total, weight = SMOOTH * total + (1 - SMOOTH) * loss, SMOOTH * weight + (1 - SMOOTH)
        means.append(total / weight)
    return means
