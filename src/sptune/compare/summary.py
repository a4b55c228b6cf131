"""Summarizes a study: means, spread, and paired differences with confidence intervals."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy import stats

from sptune.compare.run_spec import Row
from sptune.compare.study import Study
from sptune.compare.study_run import DONE, FAILED

# The rows of a method by task and seed.
Rows = Mapping[tuple[str, int], Row]


@dataclass(frozen=True)
class Line:
    """One method in the summary.

    Attributes:
        method: its name in the study.
        runs: how many are done.
        failed: how many failed.
        scores: mean score on the test data, by task; only tasks with a finished run.
        examples: by task, how many test examples that is: the fewest and the most.
        mean: mean of these means over the tasks that count: those that the reference has done or, if it has none, that
            any method has; not a number before all of them are there.
        deviation: standard deviation over seeds, averaged over the same tasks; not a number if one has one run or none.
        difference: how much better than the reference: mean over tasks of the means over the seeds that both have done.
        low, high: 95 % interval of that: for another task, of one task for other seeds.
        low_on_seeds, high_on_seeds: the same on these tasks, for other seeds.
        pairs: how many tasks and seeds that is.
        parameters: trained ones without the head, median over runs on the tasks that count.
        step_seconds: of one step, median. This, seconds and memory are those of runs on one machine, the one that did
            the most of the reference's, on the tasks that this has done there; not numbers if the method lacks one.
        machine: that machine and the dtype; empty if the method has no times there.
        seconds: of search and training, median.
        speed: seconds by those of the reference on the same task, seed and machine, median.
        memory: most bytes in use, median; None where it is not known.
        adapter_bytes: size of what is saved, median over runs on the tasks that count.
        layers: by task, how often each layer was chosen; empty for methods without prompt layers.
        rates: learning rate chosen, by task.
        outermost: tasks on which the lowest or highest rate did better than all others tried, so that a better one may
            lie beyond.
        searches: whether the method searches for its layers.
    """

    method: str
    runs: int
    failed: int
    scores: dict[str, float]
    examples: dict[str, tuple[int, int]]
    mean: float
    deviation: float
    difference: float
    low: float
    high: float
    low_on_seeds: float
    high_on_seeds: float
    pairs: int
    parameters: float
    step_seconds: float
    machine: str
    seconds: float
    speed: float
    memory: float | None
    adapter_bytes: float
    layers: dict[str, dict[int, int]]
    rates: dict[str, float]
    outermost: list[str]
    searches: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values; what is no number is None."""
        return {name: None if _is_nan(value) else value for name, value in vars(self).items()}


def interval(groups: Mapping[Any, Sequence[float]]) -> tuple[float, float]:
    """95 % interval of the mean of the groups' means, for another group; of one group as `interval_within`.

    Args:
        groups: values by group, such as by task; their means are the sample, by Student's t.

    Returns:
        Its ends; not numbers where there is too little to tell.
    """
    if len(groups) < 2:
        return interval_within(groups)
    sample = [statistics.mean(own) for own in groups.values()]
    if _equal(sample):
        return math.nan, math.nan
    return t_interval(mean_of_means(groups), statistics.stdev(sample) / math.sqrt(len(sample)), len(sample) - 1)


def interval_within(groups: Mapping[Any, Sequence[float]]) -> tuple[float, float]:
    """95 % interval of the mean of the groups' means for these groups and other values in each, such as other seeds.

    The error of each group's mean is its own; the degrees of freedom of all together are those of Welch and
    Satterthwaite (Biometrics Bulletin 2(6), 1946).

    Args:
        groups: values by group.

    Returns:
        Its ends; not numbers where a group has one value, or no group has two that differ.
    """
    sizes = [len(own) for own in groups.values()]
    if not sizes or min(sizes) < 2 or all(map(_equal, groups.values())):
        return math.nan, math.nan
    errors = [statistics.variance(own) / len(own) for own in groups.values()]
    freedom = sum(errors) ** 2 / sum(error**2 / (size - 1) for error, size in zip(errors, sizes, strict=True))
    return t_interval(mean_of_means(groups), math.sqrt(sum(errors)) / len(groups), freedom)


def _equal(values: Sequence[float]) -> bool:
    """Whether values do not differ, which is no certainty: three differences may be of as many questions."""
    return math.isclose(min(values), max(values), abs_tol=1e-12)


def t_interval(middle: float, error: float, freedom: float) -> tuple[float, float]:
    """95 % interval by Student's t from a mean, its standard error and the degrees of freedom of that."""
    reach = float(stats.t.ppf(0.975, freedom)) * error
    return middle - reach, middle + reach


def mean_of_means(groups: Mapping[Any, Sequence[float]]) -> float:
    """The mean of the groups' means."""
    return statistics.mean(statistics.mean(own) for own in groups.values())


def summarize(study: Study, rows: Sequence[Row]) -> list[Line]:
    """A line for each method of the study, in its order; only its reported runs count, and they are what `rows` holds.

    Args:
        study: what was asked for.
        rows: what is there, of this study or of others too.
    """
    known = {row["run"]: row for row in rows}
    rates = study.chosen_rates(rows)
    done: dict[str, dict[tuple[str, int], Row]] = {name: {} for name in study.methods}
    failed = dict.fromkeys(study.methods, 0)
    for spec in study.final_runs(rates):
        row = known.get(spec.id) if (spec.task, spec.name) in rates else None
        if row is not None and row["state"] == DONE:
            done[spec.name][spec.task, spec.seed] = row
        elif row is not None and row["state"] == FAILED:
            failed[spec.name] += 1
    for spec in study.tuning_runs():
        row = known.get(spec.id)
        failed[spec.name] += row is not None and row["state"] == FAILED
    outermost = study.outermost_rates(rows)
    return [_line(name, done, failed[name], study, rates, outermost) for name in study.methods]


def machine(row: Row) -> tuple[Any, ...]:
    """The device of a run, the processor if the device is a CPU, and the dtype."""
    device = row.get("device")
    return device, row.get("processor") if device == "cpu" else None, row.get("bf16")


def machine_name(device: str, processor: str | None, bf16: bool | None) -> str:
    """A machine in words; rows of old versions do not tell the processor."""
    return f"{processor or device}, {'bfloat16 (autocast)' if bf16 else 'no autocast'}"


def timed_on(rows: Iterable[Row]) -> tuple[Any, ...] | None:
    """The machine that did the most of these runs, so that times of one machine are compared; None without any run."""
    counts = Counter(map(machine, rows))
    return max(counts, key=lambda one: counts[one]) if counts else None


def _line(
    name: str,
    done: Mapping[str, Rows],
    failed: int,
    study: Study,
    rates: Mapping[tuple[str, str], float],
    outermost: Collection[tuple[str, str]],
) -> Line:
    own, reference = done[name], done[study.against]
    # The runs whose tasks count. Means and medians of methods compare only over the same tasks.
    basis = list(reference.items()) or [run for rows in done.values() for run in rows.items()]
    tasks = {task for (task, _), _ in basis}
    counted = [row for (task, _), row in own.items() if task in tasks]
    paired = sorted(set(own) & set(reference)) if name != study.against else []
    return Line(
        method=name,
        runs=len(own),
        failed=failed,
        pairs=len(paired),
        parameters=_median([row["parameters"]["added"] for row in counted]),
        adapter_bytes=_median([row["adapter_bytes"] for row in counted]),
        layers=_layers(own),
        rates={task: rate for (task, method), rate in rates.items() if method == name},
        outermost=[task for task in study.tasks if (task, name) in outermost],
        searches=study.methods[name].searches,
        **_scores(own, tasks, study),
        **_differences(own, reference, paired),
        **_costs(own, reference, paired, basis),
    )


def _scores(own: Rows, wanted: Collection[str], study: Study) -> dict[str, Any]:
    """The fields of a line that tell how well the method does; mean and deviation are over the wanted tasks."""
    by_task = {task: [row["test"]["score"] for (of, _), row in own.items() if of == task] for task in study.tasks}
    scores = {task: statistics.mean(values) for task, values in by_task.items() if values}
    sizes = {task: [row["test"]["examples"] for (of, _), row in own.items() if of == task] for task in scores}
    there = bool(wanted) and all(by_task[task] for task in wanted)
    repeated = there and all(len(by_task[task]) > 1 for task in wanted)
    return {
        "scores": scores,
        "examples": {task: (min(counts), max(counts)) for task, counts in sizes.items()},
        "mean": statistics.mean(scores[task] for task in wanted) if there else math.nan,
        "deviation": statistics.mean(statistics.stdev(by_task[task]) for task in wanted) if repeated else math.nan,
    }


def _differences(own: Rows, reference: Rows, paired: Sequence[tuple[str, int]]) -> dict[str, Any]:
    """The fields of a line that tell how much better than the reference the method is."""
    differences: dict[str, list[float]] = {}
    for key in paired:
        differences.setdefault(key[0], []).append(own[key]["test"]["score"] - reference[key]["test"]["score"])
    low, high = interval(differences)
    low_on_seeds, high_on_seeds = interval_within(differences)
    return {
        "difference": mean_of_means(differences) if differences else math.nan,
        "low": low,
        "high": high,
        "low_on_seeds": low_on_seeds,
        "high_on_seeds": high_on_seeds,
    }


def _costs(
    own: Rows, reference: Rows, paired: Sequence[tuple[str, int]], basis: Sequence[tuple[tuple[str, int], Row]]
) -> dict[str, Any]:
    """The fields of a line that tell what the method costs on the machine whose times are compared.

    Args:
        own: the method's runs.
        reference: those of the reference.
        paired: tasks and seeds that both have done.
        basis: the runs whose tasks and most frequent machine count.
    """
    timed = timed_on(row for _, row in basis)
    tasks = {task for (task, _), row in basis if machine(row) == timed}
    slower = [
        own[key]["seconds"]["total"] / reference[key]["seconds"]["total"]
        for key in paired
        if machine(own[key]) == machine(reference[key]) and reference[key]["seconds"]["total"] > 0
    ]
    there = {key: row for key, row in own.items() if key[0] in tasks and machine(row) == timed}
    # A median over other tasks would not compare.
    measured = list(there.values()) if tasks == {task for task, _ in there} else []
    memory = [row["peak_memory"] for row in measured if row["peak_memory"] is not None]
    return {
        "step_seconds": _median([row["seconds"]["step"] for row in measured]),
        "machine": machine_name(*timed) if timed and measured else "",
        "seconds": _median([row["seconds"]["total"] for row in measured]),
        "speed": _median(slower),
        "memory": statistics.median(memory) if memory else None,
    }


def _layers(own: Rows) -> dict[str, dict[int, int]]:
    """By task, in how many runs each layer was chosen."""
    layers: dict[str, dict[int, int]] = {}
    for (task, _), row in own.items():
        for layer in row["prompt_layers"] or []:
            layers.setdefault(task, {})[layer] = layers.get(task, {}).get(layer, 0) + 1
    return layers


def _median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else math.nan


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
