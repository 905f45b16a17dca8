"""Several observers see what one would."""

from typing import Any

import pytest

from base.training.observer import Observer, all_of

HOOKS = [name for name in vars(Observer) if not name.startswith("_")]


class Recorder(Observer):
    def __init__(self, calls: list[Any], number: int) -> None:
        for name in HOOKS:
            setattr(self, name, lambda *arguments: calls.append((number, arguments)))


@pytest.mark.parametrize("name", HOOKS)
def test_each_call_reaches_all_observers_in_order(name: str) -> None:
    calls: list[Any] = []
    observers = all_of([Recorder(calls, 1), Recorder(calls, 2)])
    arguments = ("a", "b", "c")[: getattr(Observer, name).__code__.co_argcount - 1]
    getattr(observers, name)(*arguments)
    assert calls == [(1, arguments), (2, arguments)]
