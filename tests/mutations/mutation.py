"""A mutation: one method with a small fault, in place while a context lasts."""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pvecfs.replica import machine
from pvecfs.replica.machine import GroupMachine


@dataclass(frozen=True)
class Mutation:
    """In the source of C{method}, C{old} becomes C{new}.

    @ivar name: what the fault is.
    @ivar method: a function in a class of pvecfs.
    @ivar old: text that occurs exactly once in the method's source.
    @ivar new: what stands there instead.
    @ivar mixed: only machines of nodes with odd numbers have the fault, as if others ran another implementation.
    """

    name: str
    method: Callable[..., object]
    old: str
    new: str
    mixed: bool = False

    def _faulty(self) -> Callable[..., object]:
        source = textwrap.dedent(inspect.getsource(self.method))
        if source.count(self.old) != 1:
            raise ValueError(f"{self.name}: {self.method.__qualname__} has {source.count(self.old)} times {self.old!r}")
        namespace = dict(vars(sys.modules[self.method.__module__]))
        exec(
            compile("from __future__ import annotations\n" + source.replace(self.old, self.new), self.name, "exec"),
            namespace,
        )
        faulty = namespace[self.method.__name__]
        assert callable(faulty)
        if self.mixed:
            return self._mixed(faulty)
        return faulty  # type: ignore[no-any-return]  # a function, made from a function's source

    def _mixed(self, faulty: Callable[..., object]) -> Callable[..., object]:
        correct = self.method

        def mixed(machine: GroupMachine, *arguments: object) -> object:
            return (faulty if machine.own.node_id % 2 else correct)(machine, *arguments)

        return mixed

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The fault is in place.

        @raise ValueError: the method's source is not what this mutation was made for.
        """
        owner = getattr(sys.modules[self.method.__module__], self.method.__qualname__.split(".")[0])
        faulty = self._faulty()
        tables = [*machine._TRANSITIONS.values(), machine._OTHERWISE]
        places = [(table, key) for table in tables for key, value in table.items() if value is self.method]  # type: ignore[attr-defined]  # dicts
        setattr(owner, self.method.__name__, faulty)
        for table, key in places:
            table[key] = faulty  # type: ignore[index]  # dicts of two kinds of keys
        try:
            yield
        finally:
            setattr(owner, self.method.__name__, self.method)
            for table, key in places:
                table[key] = self.method  # type: ignore[index]  # as above
