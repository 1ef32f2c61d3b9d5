"""Wall time: a list schedule of jobs over devices, and the longest chain that no number of devices shortens."""

import heapq
from collections.abc import Mapping, Sequence

from msgspec import Struct


class Task(Struct, frozen=True, kw_only=True):
    """One job: how long, where, after which others."""

    name: str
    seconds: float
    pool: str
    after: Sequence[str] = ()
    """Names of tasks; others are taken as done."""


class Slot(Struct, frozen=True, kw_only=True):
    """When and on which device of its pool a task runs."""

    start: float
    end: float
    lane: int


class Schedule(Struct, frozen=True, kw_only=True):
    """When everything runs."""

    slots: dict[str, Slot]
    seconds: float
    """From the first start to the last end."""


def tails(tasks: Mapping[str, Task]) -> dict[str, float]:
    """Seconds from the start of each task to the end of the longest chain that begins with it.

    ``ValueError`` where tasks wait for each other.
    """
    waiting = dict.fromkeys(tasks, 0)
    for task in tasks.values():
        for before in task.after:
            if before in waiting:
                waiting[before] += 1
    ready = [name for name, count in waiting.items() if not count]
    longest = dict.fromkeys(tasks, 0.0)
    done = 0
    while ready:
        name = ready.pop()
        done += 1
        task = tasks[name]
        longest[name] += task.seconds
        for before in task.after:
            if before in tasks:
                longest[before] = max(longest[before], longest[name])
                waiting[before] -= 1
                if not waiting[before]:
                    ready.append(before)
    if done < len(tasks):
        raise ValueError("tasks wait for each other")
    return longest


def critical_path(tasks: Mapping[str, Task], longest: Mapping[str, float]) -> list[str]:
    """The names along the longest chain."""
    followers: dict[str, list[str]] = {}
    starts = []
    for task in tasks.values():
        befores = [before for before in task.after if before in tasks]
        for before in befores:
            followers.setdefault(before, []).append(task.name)
        if not befores:
            starts.append(task.name)
    path = []
    step = starts
    while step:
        name = max(step, key=lambda one: longest[one])
        path.append(name)
        step = followers.get(name, [])
    return path


def list_schedule(
    tasks: Mapping[str, Task], lanes: Mapping[str, int], longest: Mapping[str, float] | None = None
) -> Schedule:
    """Whenever a device is free it takes the ready task with the longest chain behind it.

    ``lanes``: devices per pool, at least one each. Time and memory grow as tasks and dependencies do.
    """
    longest = longest or tails(tasks)
    waiting: dict[str, int] = {}
    followers: dict[str, list[str]] = {}
    free = {pool: list(range(max(1, count))) for pool, count in lanes.items()}
    ready: dict[str, list[tuple[float, str]]] = {pool: [] for pool in lanes}
    for task in tasks.values():
        befores = {before for before in task.after if before in tasks}
        waiting[task.name] = len(befores)
        for before in befores:
            followers.setdefault(before, []).append(task.name)
        if not befores:
            heapq.heappush(ready[task.pool], (-longest[task.name], task.name))
    slots: dict[str, Slot] = {}
    running: list[tuple[float, str]] = []
    now = 0.0
    while True:
        for pool, queue in ready.items():
            while queue and free[pool]:
                _, name = heapq.heappop(queue)
                lane = heapq.heappop(free[pool])
                end = now + tasks[name].seconds
                slots[name] = Slot(start=now, end=end, lane=lane)
                heapq.heappush(running, (end, name))
        if not running:
            break
        now, name = heapq.heappop(running)
        ended = [name]
        while running and running[0][0] <= now:
            ended.append(heapq.heappop(running)[1])
        for name in ended:
            heapq.heappush(free[tasks[name].pool], slots[name].lane)
            for follower in followers.get(name, []):
                waiting[follower] -= 1
                if not waiting[follower]:
                    heapq.heappush(ready[tasks[follower].pool], (-longest[follower], follower))
    return Schedule(slots=slots, seconds=now)
