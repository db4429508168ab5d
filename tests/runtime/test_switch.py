"""A setting of the process that threads share or take turns with."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from robustcli.runtime.switch import Switch

PATIENCE = 60


class Setting:
    """A value, its switch, and what threads saw of it."""

    def __init__(self) -> None:
        self.value = "before"
        self.switch: Switch[str] = Switch(lambda: self.value, self.write)

    def write(self, value: str) -> None:
        self.value = value


def together(*bodies: Callable[[], None]) -> None:
    """Run the bodies in one thread each; an exception in one of them fails the test."""
    failures: list[BaseException] = []

    def run(body: Callable[[], None]) -> None:
        try:
            body()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(body,), daemon=True) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not failures and not any(thread.is_alive() for thread in threads), failures


def test_one_value_is_shared_and_the_last_one_out_restores() -> None:
    setting, both = Setting(), threading.Barrier(2, timeout=PATIENCE)
    first_left = threading.Event()

    def first() -> None:
        with setting.switch.held("a"):
            both.wait()
        first_left.set()

    def second() -> None:
        with setting.switch.held("a"):
            both.wait()
            assert first_left.wait(PATIENCE) and setting.value == "a"

    together(first, second)
    assert setting.value == "before"


def test_another_value_waits() -> None:
    setting, inside, asked = Setting(), threading.Event(), threading.Event()

    def first() -> None:
        with setting.switch.held("a"):
            inside.set()
            assert asked.wait(PATIENCE) and setting.value == "a"

    def second() -> None:
        assert inside.wait(PATIENCE)
        asked.set()
        with setting.switch.held("b"):
            assert setting.value == "b"

    together(first, second)
    assert setting.value == "before"


def test_two_threads_that_change_their_minds_do_not_wait_for_each_other() -> None:
    setting, both = Setting(), threading.Barrier(2, timeout=PATIENCE)

    def body() -> None:
        with setting.switch.held("a"):
            both.wait()
            for _ in range(50):
                with setting.switch.held("b"):
                    assert setting.value == "b"
                assert setting.value == "a"

    together(body, body)
    assert setting.value == "before"


def test_an_exception_restores_and_settle_holds_on() -> None:
    setting = Setting()
    with pytest.raises(ZeroDivisionError), setting.switch.held("a"):
        with setting.switch.held("b"):
            setting.switch.settle("later")
            assert setting.value == "b"
        raise ZeroDivisionError
    assert setting.value == "later"
    setting.switch.settle("now")
    assert setting.value == "now"
