# SPDX-License-Identifier: GPL-2.0-or-later
"""Launch times as a plot, in SVG: one line for each vCPU count, in multiples of its first time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import leather
from markupsafe import Markup

#: Told apart in grey too.
_COLOURS = ("#16181c", "#2b6cb0", "#a3161a", "#7a5200", "#1c5f33", "#6b46c1", "#5d646e")
_WIDTH, _HEIGHT = 900, 300
_FONT = "Liberation Sans, Arial, sans-serif"


def plot(runs: Sequence[Mapping[int, float]]) -> Markup | None:
    """The plot, None where there is nothing to draw.

    :param runs: milliseconds by vCPU count, of each run in order.
    """
    first: dict[int, float] = {}
    for run in runs:
        first = {**run, **first}
    counts = sorted(count for count, taken in first.items() if taken > 0)
    if not counts:
        return None
    times = [{count: run[count] / first[count] for count in counts if count in run} for run in runs]
    _plain_theme()
    chart = leather.Chart()
    chart.add_x_scale(1, max(len(runs), 2))
    chart.add_y_scale(0, max(max(run.values(), default=0) for run in times) * 1.1)
    chart.add_x_axis(ticks=_ticks(len(runs)), name="run")
    # leather draws a legend for several lines only
    chart.add_y_axis(name="of the first" if len(counts) > 1 else f"of the first, {counts[0]} vCPU")
    for place, count in enumerate(counts):
        colour = _COLOURS[place % len(_COLOURS)]
        points = [(number, run[count]) for number, run in enumerate(times, 1) if count in run]
        if len(points) == 1:  # a line through one point is none
            chart.add_dots(points, name=f"{count} vCPU", fill_color=colour)
        else:
            chart.add_line(points, name=f"{count} vCPU", stroke_color=colour, width=1.5)
    return Markup(chart.to_svg(width=_WIDTH, height=_HEIGHT))


def _ticks(runs: int) -> list[int]:
    step = max(1, -(-runs // 20))
    return [*range(1, runs + 1, step)] if runs > 1 else [1, 2]


def _plain_theme() -> None:
    theme = leather.theme
    theme.background_color, theme.margin = "#ffffff", 0.01
    theme.tick_color, theme.zero_color, theme.label_color = "#eceef1", "#c9cdd3", "#5d646e"
    for name in ("legend", "axis_title", "tick"):
        setattr(theme, f"{name}_font_family", _FONT)
        setattr(theme, f"{name}_font_size", 12)
        setattr(theme, f"{name}_font_char_width", 6)
