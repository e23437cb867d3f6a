# SPDX-License-Identifier: GPL-2.0-or-later
"""A launch as a drawing: time downwards, a lane for each descriptor, one line for each ioctl. Geometry only.

The drawing is cut into strips that fit on a sheet of paper, each with its lanes' names on top.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WIDTH = 1000
ROW = 17
_HEAD = 26
_STRIP = 40
_TIME = 74
_LANES_UP_TO = 520
_LANE = 62


def strips(launch: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Strips of the drawing: positions of its lanes and calls, for the template."""
    lanes = launch["lanes"]
    step = min(_LANE, (_LANES_UP_TO - _TIME) / max(len(lanes), 1))
    at = {lane: _TIME + step * (number + 0.5) for number, lane in enumerate(lanes)}
    names_at = _TIME + step * len(lanes) + 12
    calls = launch["calls"]
    return [_strip(calls[first : first + _STRIP], at, names_at) for first in range(0, len(calls), _STRIP)]


def _strip(calls: list[Mapping[str, Any]], at: Mapping[str, float], names_at: float) -> dict[str, Any]:
    height = _HEAD + ROW * len(calls) + 6
    rows = [
        {
            "y": _HEAD + ROW * number + ROW // 2,
            "x": at.get(call["lane"], _TIME),
            "time": f"{call['at_us'] / 1000:.3f}",
            "took": "" if call["took_us"] is None else f"{call['took_us'] / 1000:.3f}",
            "call": call,
        }
        for number, call in enumerate(calls)
    ]
    return {"height": height, "lanes": list(at.items()), "names_at": names_at, "rows": rows, "head": _HEAD}
