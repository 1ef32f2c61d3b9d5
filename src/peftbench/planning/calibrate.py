"""What finished jobs teach: a factor on the estimate per stage, model and device, and how far it is off.

Factors are fitted on the logarithm of measured over estimated, by weighted medians, so that a few odd records do not
matter; newer records weigh more. Where the records are many and differ enough, the share of the part that does not
depend on the work is fitted too. Every record is also predicted from all others: that error is the plan's own.
"""

import bisect
import math
from collections.abc import Iterable, Sequence
from statistics import median

from msgspec import Struct

from peftbench.planning.estimate import Estimator, try_estimate
from peftbench.planning.records import Measurement
from peftbench.planning.subject import Subject
from peftbench.planning.texts import Assumptions

RATIOS = tuple(2.0 ** (step / 2) for step in range(-8, 9))
"""Tried factors of the work over the factor of the fixed part."""
ENOUGH = 8
"""Records from which on that ratio is fitted."""
PRIOR = 1.03
"""By which a fitted ratio must beat 1."""
SHRINK = 3.0
"""Records of a method that weigh as much as the belief that methods do not differ."""
CLIP = 2.5
"""Farther from their median than this factor, records count as if they were there in the mean."""
REACH = 30.0
"""By how much the work of another model or data set may lie outside of what the records of a stage cover."""
NEWEST = 400
"""Records of one group that count."""
TARGETS = ("wall", "cpu", "peak")
NOTHING = "no records"


class Point(Struct, frozen=True, kw_only=True):
    """One record against its estimate."""

    fixed: float
    work: float
    measured: float
    weight: float
    method: str


class Fit(Struct, kw_only=True):
    """Factors of one group of records."""

    fixed: float = 1.0
    work: float = 1.0
    methods: dict[str, float] = {}
    records: int = 0
    low: float = 0.0
    high: float = math.inf
    """Of the uncorrected estimates of its records."""

    def covers(self, estimate: float) -> bool:
        """Whether an estimate is of the records' order of magnitude."""
        return self.low / REACH <= estimate <= self.high * REACH

    def predict(self, fixed: float, work: float, method: str) -> float:
        """The corrected estimate."""
        return (self.fixed * fixed + self.work * work) * self.methods.get(method, 1.0)


class Error(Struct, frozen=True, kw_only=True):
    """Leave-one-out error of one stage: every record predicted from the others."""

    stage: str
    target: str
    records: int
    median: float
    """Of the relative errors, percent."""
    total: float
    """Sum of the predictions over the sum of what was measured, minus one, percent."""


class _Sorted:
    """Log ratios of a group for one ratio of factors; medians with and without one of them."""

    def __init__(self, points: Sequence[Point], ratio: float) -> None:
        self.ratio = ratio
        self.logs = [math.log(p.measured / (p.fixed + ratio * p.work)) for p in points]
        self.weights = [p.weight for p in points]
        self.order = sorted(range(len(points)), key=lambda i: self.logs[i])
        self.place = {i: at for at, i in enumerate(self.order)}
        self.sums: list[float] = []
        total = 0.0
        for i in self.order:
            total += self.weights[i]
            self.sums.append(total)
        self.total = total
        self.middle = self.logs[self.order[self._at(total / 2)]]
        self.off = sum(w * abs(x - self.middle) for w, x in zip(self.weights, self.logs, strict=True))

    def _at(self, mass: float) -> int:
        return min(bisect.bisect_left(self.sums, mass), len(self.sums) - 1)

    def middle_without(self, left: int) -> float:
        """The weighted median of all but one."""
        at, weight = self.place[left], self.weights[left]
        half = (self.total - weight) / 2
        found = self._at(half)
        if found >= at:
            found = self._at(half + weight)
        if found == at:
            found = at - 1 if at == len(self.order) - 1 else at + 1
        return self.logs[self.order[found]]

    def off_without(self, left: int) -> float:
        """Mean deviation without one of them."""
        rest = self.total - self.weights[left]
        return (self.off - self.weights[left] * abs(self.logs[left] - self.middle)) / max(rest, 1e-12)


def fit(points: Sequence[Point]) -> tuple[Fit, list[float]]:
    """The factors of a group, and the prediction of each record from all others (NaN where it is the only one)."""
    spread = [p.work / max(p.fixed, 1e-9) for p in points]
    free = len(points) >= ENOUGH and max(spread) > 2 * min(spread)
    tables = [_Sorted(points, ratio) for ratio in (RATIOS if free else (1.0,))]

    def best(cost: dict[float, float]) -> _Sorted:
        return min(tables, key=lambda t: cost[t.ratio] * (1.0 if t.ratio == 1.0 else PRIOR))

    chosen = best({table.ratio: table.off for table in tables})
    factor = math.exp(chosen.middle)
    rests: dict[str, list[tuple[int, float]]] = {}
    for i, (point, log) in enumerate(zip(points, chosen.logs, strict=True)):
        rests.setdefault(point.method, []).append((i, log - chosen.middle))
    methods = {name: math.exp(_shrunk([rest for _, rest in group])) for name, group in rests.items()}
    mean = _Mean(points, chosen, methods)
    factor *= mean.all
    seen = [p.fixed + p.work for p in points]
    found = Fit(
        fixed=factor,
        work=factor * chosen.ratio,
        methods=methods,
        records=len(points),
        low=min(seen),
        high=max(seen),
    )
    predictions = []
    for i, point in enumerate(points):
        if len(points) == 1:
            predictions.append(math.nan)
            continue
        table = best({table.ratio: table.off_without(i) for table in tables})
        log = table.middle_without(i)
        others = [table.logs[at] - log for at, _ in rests[point.method] if at != i]
        log += _shrunk(others) if others else 0.0
        predictions.append(math.exp(log) * mean.without(i) * (point.fixed + table.ratio * point.work))
    return found, predictions


class _Mean:
    """From the median to the mean, which totals follow: jobs are held up more often than they are ahead.

    The mean is a clipped one, and only taken of many records.
    """

    def __init__(self, points: Sequence[Point], table: _Sorted, methods: dict[str, float]) -> None:
        self.parts = []
        for point, log, weight in zip(points, table.logs, table.weights, strict=True):
            guess = (point.fixed + table.ratio * point.work) * methods[point.method] * weight
            off = math.exp(log - table.middle) / methods[point.method]
            self.parts.append((guess * min(max(off, 1 / CLIP), CLIP), guess))
        self.real, self.guessed = (sum(part[k] for part in self.parts) for k in (0, 1))

    @property
    def all(self) -> float:
        """Of all records."""
        return self.real / self.guessed if len(self.parts) >= ENOUGH else 1.0

    def without(self, left: int) -> float:
        """Of all but one."""
        real, guessed = self.parts[left]
        return (self.real - real) / (self.guessed - guessed) if len(self.parts) > ENOUGH else 1.0


def _shrunk(rests: Sequence[float]) -> float:
    return median(rests) * len(rests) / (len(rests) + SHRINK)


class Calibration:
    """Fits of all groups; corrects estimates."""

    def __init__(self) -> None:
        self.fits: dict[tuple[str, ...], Fit] = {}
        self.errors: list[Error] = []
        self.used = 0
        self.elsewhere = 0
        """Records of model stages on other devices."""
        self.unknown = 0
        """Records of what the configuration does not have."""

    def correct(self, subject: Subject, target: str, fixed: float, work: float) -> float:
        """The estimate as the records have it: by stage and model, else by stage, else as it is."""
        found = self.fits.get(self._key(subject, target, fixed + work))
        return found.predict(fixed, work, subject.method) if found else fixed + work

    def _key(self, subject: Subject, target: str, estimate: float) -> tuple[str, ...]:
        """Of the records to go by."""
        own: tuple[str, ...] = (target, subject.stage, subject.slot)
        if own in self.fits:
            return own
        whole = (target, subject.stage)
        return whole if whole in self.fits and self.fits[whole].covers(estimate) else ()

    def basis(self, subject: Subject, estimate: float) -> str:
        """Where the correction of a job's time comes from."""
        key = self._key(subject, "wall", estimate)
        return f"{self.fits[key].records} records of {' '.join(filter(None, key[1:]))}" if key else NOTHING


def calibrate(
    measured: Iterable[tuple[Subject, Measurement]], estimator: Estimator, assumptions: Assumptions
) -> Calibration:
    """Fit all groups. Records of model stages count on the hardware's own kind of device; all others on any."""
    found = Calibration()
    groups: dict[tuple[str, str], list[tuple[Subject, Measurement, float, float, float]]] = {}
    for subject, one in measured:
        if one.failed:
            continue  # it ended early
        if subject.heavy and not estimator.hardware.is_this(one.device):
            found.elsewhere += 1
            continue
        estimate = try_estimate(estimator, subject, subject.computes or 0)
        if estimate is None or estimate.seconds <= 0.0:
            found.unknown += 1
            continue
        found.used += 1
        on_gpu = subject.heavy and estimator.hardware.kind == "gpu"
        memory = estimate.device_memory if on_gpu else estimate.host_memory
        groups.setdefault((subject.stage, subject.slot), []).append(
            (subject, one, estimate.fixed, estimate.work, memory)
        )
    for target in TARGETS:
        by_stage: dict[str, list[tuple[str, list[Point]]]] = {}
        for (stage, slot), group in groups.items():
            group.sort(key=lambda entry: -entry[1].started)
            points = _points(group[:NEWEST], target, assumptions)
            if points:
                by_stage.setdefault(stage, []).append((slot, points))
        for stage, slots in by_stage.items():
            _fit_stage(found, target, stage, slots)
    return found


def _fit_stage(found: Calibration, target: str, stage: str, slots: list[tuple[str, list[Point]]]) -> None:
    every = [point for _, points in slots for point in points]
    # Over several models the overheads differ for other reasons: one factor.
    whole, crossed = fit(every)
    found.fits[target, stage] = whole
    pairs: list[tuple[float, float]] = []
    at = 0
    for slot, points in slots:
        own, predictions = fit(points)
        found.fits[target, stage, slot] = own
        if len(points) == 1:
            predictions = crossed[at : at + 1]
        at += len(points)
        pairs += [(guess, p.measured) for guess, p in zip(predictions, points, strict=True) if guess == guess]
    if pairs:
        found.errors.append(error_of(stage, target, pairs))


def error_of(stage: str, target: str, pairs: Sequence[tuple[float, float]]) -> Error:
    """The error of predictions against what was measured."""
    return Error(
        stage=stage,
        target=target,
        records=len(pairs),
        median=100.0 * median(abs(guess / real - 1.0) for guess, real in pairs),
        total=100.0 * (sum(guess for guess, _ in pairs) / sum(real for _, real in pairs) - 1.0),
    )


def _points(
    group: Sequence[tuple[Subject, Measurement, float, float, float]], target: str, assumptions: Assumptions
) -> list[Point]:
    """Records against estimates, newest first."""
    newest = group[0][1].started
    points = []
    for rank, (subject, one, fixed, work, memory) in enumerate(group):
        age = (newest - one.started) / 86400.0
        weight = 0.5 ** (age / assumptions.half_life_days + rank / assumptions.half_life_records)
        value = {"wall": one.wall, "cpu": one.cpu, "peak": one.peak_gpu or one.peak}[target]
        if target == "peak":
            fixed, work = memory, 0.0
        if value > 0.0 and fixed + work > 0.0:
            points.append(Point(fixed=fixed, work=work, measured=value, weight=weight, method=subject.method))
    return points
