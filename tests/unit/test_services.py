"""Services: readiness in order, restarts for listed errors only, bugs end everything."""

from __future__ import annotations

import math

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from relayd.services import NotReadyError, Service, supervise


def longest(low: float, high: float) -> float:
    return high


class Flaky:
    """Fails as told: a step is (seconds until ready; None: never, seconds of life then, the error)."""

    def __init__(self, *steps: tuple[float | None, float, BaseException | None]) -> None:
        self.steps = list(steps)
        self.began: list[float] = []

    async def __call__(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        self.began.append(trio.current_time())
        ready_s, life_s, error = self.steps.pop(0) if self.steps else (0.0, math.inf, None)
        await trio.sleep(math.inf if ready_s is None else ready_s)
        task_status.started()
        await trio.sleep(life_s)
        if error is not None:
            raise error


def leaf(caught: pytest.ExceptionInfo[BaseException]) -> BaseException:
    error: BaseException = caught.value
    while isinstance(error, BaseExceptionGroup):
        (error,) = error.exceptions
    return error


def service(run: Flaky, *retry: type[Exception], ready_within_s: float = 60.0) -> Service:
    return Service(name="flaky", run=run, retry=retry, ready_within_s=ready_within_s)


async def test_each_starts_when_the_one_before_is_useful_and_all_are_when_the_last_is(
    autojump_clock: MockClock,
) -> None:
    first, second = Flaky((3.0, math.inf, None)), Flaky((4.0, math.inf, None))
    async with trio.open_nursery() as nursery:
        start = trio.current_time()
        await nursery.start(supervise, [service(first), service(second)])
        assert [first.began[0] - start, second.began[0] - start] == [0.0, 3.0]
        assert trio.current_time() - start == 7.0
        nursery.cancel_scope.cancel()


async def test_listed_error_restarts_that_service_after_a_growing_wait_and_no_other(
    autojump_clock: MockClock,
) -> None:
    flaky = Flaky(*[(0.0, 5.0, OSError("gone"))] * 3)
    steady = Flaky()
    async with trio.open_nursery() as nursery:
        run = [service(steady), service(flaky, OSError)]
        with capture_logs() as logged:
            await nursery.start(
                lambda *, task_status: supervise(run, uniform=longest, task_status=task_status)
            )
            await trio.sleep(60)
        nursery.cancel_scope.cancel()
    waits = [later - earlier - 5.0 for earlier, later in zip(flaky.began, flaky.began[1:], strict=False)]
    assert waits == [1.0, 2.0, 4.0]
    assert len(steady.began) == 1
    assert [(one["event"], one.get("error")) for one in logged[:2]] == [
        ("service.failed", "OSError: gone"),
        ("service.restarted", None),
    ]


async def test_useful_life_resets_the_wait(autojump_clock: MockClock) -> None:
    flaky = Flaky((0.0, 1.0, OSError()), (0.0, 1.0, OSError()), (0.0, 30.0, OSError()), (0.0, 1.0, OSError()))
    async with trio.open_nursery() as nursery:
        await nursery.start(
            lambda *, task_status: supervise(
                [service(flaky, OSError)], uniform=longest, task_status=task_status
            )
        )
        await trio.sleep(60)
        nursery.cancel_scope.cancel()
    lives = [1.0, 1.0, 30.0, 1.0]
    waits = [b - a - life for a, b, life in zip(flaky.began, flaky.began[1:], lives, strict=False)]
    assert waits == [1.0, 2.0, 1.0, 2.0]


async def test_failure_before_it_was_ever_useful_passes_out(autojump_clock: MockClock) -> None:
    async def refuse(*, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        raise OSError("address in use")

    with pytest.raises(ExceptionGroup) as caught:
        await supervise([Service(name="listener", run=refuse, retry=(OSError,))])
    assert str(leaf(caught)) == "address in use"


async def test_error_that_is_not_listed_ends_all_even_beside_a_listed_one(autojump_clock: MockClock) -> None:
    both = ExceptionGroup("two", [OSError("gone"), ZeroDivisionError("bug")])
    with pytest.raises(BaseExceptionGroup) as caught:
        await supervise([service(Flaky()), service(Flaky((0.0, 1.0, both)), OSError)])
    assert isinstance(leaf(caught), ZeroDivisionError)


async def test_listed_errors_in_a_group_are_listed_errors(autojump_clock: MockClock) -> None:
    flaky = Flaky((0.0, 1.0, ExceptionGroup("two", [OSError("a"), ExceptionGroup("in", [OSError("b")])])))
    with capture_logs() as logged, trio.move_on_after(20):
        await supervise([service(flaky, OSError)], uniform=longest)
    assert len(flaky.began) == 2
    assert logged[0]["error"] == "OSError: a; OSError: b"


async def test_service_that_returns_is_a_bug(autojump_clock: MockClock) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        await supervise([service(Flaky((0.0, 1.0, None)), OSError)])
    assert isinstance(leaf(caught), RuntimeError)
    assert "ended by itself" in str(leaf(caught))


async def test_service_that_is_never_ready_ends_with_its_name_and_the_time(autojump_clock: MockClock) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        await supervise([service(Flaky((None, 0.0, None)), ready_within_s=5)])
    assert isinstance(leaf(caught), NotReadyError)
    assert str(leaf(caught)) == "flaky was not ready within 5 s"


async def test_restart_that_takes_too_long_is_retried_where_that_is_listed(autojump_clock: MockClock) -> None:
    flaky = Flaky((0.0, 1.0, OSError()), (None, 0.0, None), (0.0, math.inf, None))
    with trio.move_on_after(60):
        await supervise([service(flaky, OSError, NotReadyError, ready_within_s=5)], uniform=longest)
    assert len(flaky.began) == 3


async def test_readiness_has_a_deadline_and_useful_life_has_none(autojump_clock: MockClock) -> None:
    flaky = Flaky((4.0, math.inf, None))
    with trio.move_on_after(1000) as scope:
        await supervise([service(flaky, ready_within_s=5)])
    assert scope.cancelled_caught
    assert len(flaky.began) == 1


async def test_cancellation_passes_in_a_run_and_in_a_wait(autojump_clock: MockClock) -> None:
    for steps in ([], [(0.0, 1.0, OSError())]):
        with trio.move_on_after(1.5) as scope:
            await supervise([service(Flaky(*steps), OSError)], uniform=longest)
        assert scope.cancelled_caught


async def test_started_twice_is_a_bug(autojump_clock: MockClock) -> None:
    async def eager(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        task_status.started()

    with pytest.raises(ExceptionGroup) as caught:
        await supervise([Service(name="eager", run=eager)])
    assert "twice" in str(leaf(caught))


async def test_tasks_bear_the_services_names(autojump_clock: MockClock) -> None:
    names: list[str] = []

    async def look(*, task_status: trio.TaskStatus[None]) -> None:
        names.append(trio.lowlevel.current_task().name)
        task_status.started()
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        await nursery.start(supervise, [Service(name="data plane", run=look)])
        nursery.cancel_scope.cancel()
    assert names == ["data plane"]
