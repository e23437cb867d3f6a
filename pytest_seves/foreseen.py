# SPDX-License-Identifier: GPL-2.0-or-later
"""What the next tests will ask of a host, from what they asked in an earlier run: it is sent ahead of them.

pytest's cache keeps it. Left out is what is another in each run: what names a file of the agent's directory,
and whatever a test asks for that is alone on the host. A hint that turns out wrong is the last of its run.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from .errors import HostError

if TYPE_CHECKING:
    from .host.ahead import Ahead
    from .source import Source

_CACHE = "sev/asked"
#: In the path of an agent's directory.
_OF_AN_AGENT = "/pytest-seves-"
#: Requests under way at a time, and tests that are looked at for them.
_MOST, _FAR = 6, 40

#: By test: operations and their arguments.
Asked = dict[str, list[list[Any]]]


class Foreseen:
    """A plugin, in the controller and in each xdist worker.

    :param defects: with others, tests ask for something else.
    """

    def __init__(self, config: pytest.Config, source: Source, defects: Sequence[str]) -> None:
        self._config = config
        self._source = source
        self._defects = defects
        self._cache: pytest.Cache | None = getattr(config, "cache", None)
        self._known: dict[str, Asked] = self._cache.get(_CACHE, {}) if self._cache else {}
        self._new: dict[str, Asked] = {}
        self._sent: dict[str, list[str]] = {}
        self._right = True

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> Generator[None, object, object]:
        """Send what this test and the next ones asked for the last time; note what this one asks for."""
        for target in self._source.connected():
            if self._right:
                self._send(target.client.ahead, self._known.get(self._name(target.name), {}), item, nextitem)
        result = yield
        sent = self._sent.pop(item.nodeid, [])
        for target in self._source.connected():
            ahead = target.client.ahead
            noted, ahead.noted = ahead.noted, []
            wrong = any(ahead.waits(name) for name in sent)
            self._right &= not wrong
            if noted or wrong:
                kept = [[op, args] for op, args in noted if _lasts(args)]
                self._new.setdefault(self._name(target.name), {})[item.nodeid] = kept
        return result

    def _name(self, host: str) -> str:
        return " ".join([host, *self._defects])

    def _send(self, ahead: Ahead, known: Asked, item: pytest.Item, nextitem: pytest.Item | None) -> None:
        for test in self._next(item, nextitem):
            for op, args in known.get(test.nodeid, []):
                if ahead.under_way >= _MOST:
                    return
                try:
                    name = ahead.send(op, args)
                except HostError:  # the test that is run now finds out
                    return
                if name:
                    self._sent.setdefault(test.nodeid, []).append(name)

    def _next(self, item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[pytest.Item]:
        """Tests that are sure to be run here, in order, as far as is known."""
        items = item.session.items
        yield item
        if nextitem is None:
            return
        yield nextitem
        plugins = self._config.pluginmanager.get_plugins()
        queue = next((plugin.torun for plugin in plugins if hasattr(plugin, "torun")), None)
        if queue is None:
            at = items.index(nextitem) + 1
            yield from items[at : at + _FAR]
            return
        with queue.lock() as waiting:  # a worker's of xdist: indices, and at the end a mark
            indices = [index for index in waiting if isinstance(index, int)]
        yield from (items[index] for index in indices[:_FAR])

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """What the tests of a worker asked for."""
        for name, asked in getattr(node, "workeroutput", {}).get("sev_asked", {}).items():
            self._new.setdefault(name, {}).update(asked)

    def pytest_sessionfinish(self) -> None:
        """Tell the controller, or keep it."""
        if hasattr(self._config, "workeroutput"):
            self._config.workeroutput["sev_asked"] = self._new
        elif self._cache and self._new:
            merged = {name: {**self._known.get(name, {}), **asked} for name, asked in self._new.items()}
            self._cache.set(_CACHE, {**self._known, **merged})


def _lasts(args: dict[str, Any]) -> bool:
    """Whether the next run asks for the same."""
    return not args.get("usage") and not any(_OF_AN_AGENT in word for word in args.get("argv", ()))
