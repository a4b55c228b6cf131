"""A study: methods on tasks with seeds, and the runs that it is made of (`RunSpec`)."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sptune.compare.methods import DEFAULT_METHODS, METHODS, Method, find_method, with_new_name
from sptune.compare.run_spec import Row, RunSpec
from sptune.errors import InputError
from sptune.runs import output_folder as outputs
from sptune.runs.options.option_mappings import INPUT_PATHS, NESTED, with_new_names
from sptune.runs.options.run_options import PROMPT_OPTIONS, SHARED_OPTIONS, RunOptions
from sptune.whole_files import expanded

DEFAULT_SEEDS = (0, 1, 2)
# Learning rates are chosen on a draw of the data that no result is reported on.
TUNING_SEEDS = (1000,)

FIELDS = ("methods", "tasks", "seeds", "tuning_seeds", "tuning_seed", "tuning_tasks", "options", "against")


@dataclass(frozen=True)
class Study:
    """What is compared.

    Attributes:
        methods: by the name under which results are shown.
        tasks: options of each task, by name.
        seeds: of the reported runs.
        tuning_seeds: of the runs that choose learning rates.
        tuning_tasks: the tasks on which one learning rate for all tasks is chosen; empty where each task has its own.
        against: the method that the others are compared with.
    """

    methods: Mapping[str, Method]
    tasks: Mapping[str, Mapping[str, Any]]
    seeds: tuple[int, ...]
    tuning_seeds: tuple[int, ...]
    tuning_tasks: tuple[str, ...]
    against: str

    @classmethod
    def read(cls, path: str | Path) -> Study:
        """A study from a YAML file.

        Raises:
            InputError: the file cannot be read, or what `from_mapping` raises.
        """
        return cls.from_mapping(outputs.read_config(expanded(path)), str(path))

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], where: str) -> Study:
        """A study from plain values; nothing but the options' form is checked.

        Args:
            values: `methods` (a list of names, or a mapping from names to changes of their settings), `tasks` (a
                mapping from names to options that hold for one task), `seeds` and `tuning_seeds` (lists;
                `tuning_seed: 1000` is one), `tuning_tasks` (a list of names of tasks), `options` (for all tasks),
                `against` (a method's name).
            where: named in errors.

        Raises:
            InputError: an unknown field, method or option, or a value of the wrong form.
        """
        unknown = [key for key in values if key not in FIELDS]
        if unknown:
            raise InputError(f"{where}: {unknown[0]!r} is not a field of a study; the fields are: {', '.join(FIELDS)}.")
        methods = _methods(values.get("methods") or list(DEFAULT_METHODS), where)
        shared = _mapping(values.get("options"), f"{where}: options")
        _check_shared(shared, f"{where}: options")
        tasks = _mapping(values.get("tasks"), f"{where}: tasks")
        if not tasks:
            raise InputError(f"{where}: a study needs tasks, such as 'tasks: {{sst2: {{task: sst2}}}}'.")
        tasks = {str(name): _mapping(own, f"{where}: task {name}") for name, own in tasks.items()}
        for name, options in tasks.items():
            _check_shared(options, f"{where}: task {name}")
        shared = with_new_names(shared)
        tasks = {name: _with_paths({**shared, **with_new_names(options)}) for name, options in tasks.items()}
        seeds = _seeds("seeds", values.get("seeds", list(DEFAULT_SEEDS)), "[0, 1, 2]", where)
        tuning_seeds = _tuning_seeds(values, seeds, where)
        against = values.get("against") or ("spt" if "spt" in methods else next(iter(methods)))
        against = against if against in methods else with_new_name(against)
        if against not in methods:
            raise InputError(f"{where}: against={against!r} is not one of the methods ({', '.join(methods)}).")
        study = cls(
            methods, tasks, seeds, tuning_seeds, _tuning_tasks(values.get("tuning_tasks"), tasks, where), against
        )
        try:
            for spec in (*study.tuning_runs(), *study.final_runs({})):
                spec.run_options("")
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        return study

    def to_dict(self) -> dict[str, Any]:
        """Plain values that `from_mapping` takes, with every choice made."""
        return {
            "methods": {
                name: {
                    "method": method.name,
                    "learning_rates": list(method.learning_rates),
                    **dict.fromkeys(METHODS[method.name].settings),  # what was taken out of the table's stays out
                    **method.settings,
                }
                for name, method in self.methods.items()
            },
            "tasks": {name: dict(options) for name, options in self.tasks.items()},
            "seeds": list(self.seeds),
            "tuning_seeds": list(self.tuning_seeds),
            "tuning_tasks": list(self.tuning_tasks),
            "against": self.against,
        }

    def tuning_runs(self) -> list[RunSpec]:
        """The runs that choose learning rates: one for each tuning seed and rate of each method on each task."""
        return [
            self._spec(task, name, seed, rate, tuning=True)
            for task in self.tuning_tasks or self.tasks
            for seed in self.tuning_seeds
            for name, method in self.methods.items()
            if len(method.learning_rates) > 1
            for rate in method.learning_rates
        ]

    def final_runs(self, rates: Mapping[tuple[str, str], float]) -> list[RunSpec]:
        """The runs that are reported: one for each seed of each method on each task.

        Args:
            rates: the learning rate by task and method; where it is missing, the first stands for it.
        """
        return [
            self._spec(task, name, seed, rates.get((task, name), method.learning_rates[0]), tuning=False)
            for task in self.tasks
            for seed in self.seeds
            for name, method in self.methods.items()
        ]

    def chosen_rates(self, rows: Iterable[Row]) -> dict[tuple[str, str], float]:
        """The learning rate with the best development score, by task and method; only where all rates were tried.

        The score of a rate is the mean over the tuning seeds, and over the tuning tasks if there are any. A rate with
        a failed run is worse than any with fewer. Of equal ones the lower is taken. Where every run failed, there is
        none.
        """
        return {key: min(best) for key, best in self._best_rates(rows).items()}

    def outermost_rates(self, rows: Iterable[Row]) -> set[tuple[str, str]]:
        """Tasks and methods whose best rate is the lowest or highest tried, and better than all others.

        A better one may lie beyond. Where a run of the rate next to it failed, that one may be the better.
        """
        rows = list(rows)
        failed = {(spec.task, spec.name, spec.learning_rate) for spec in self.failed_tuning_runs(rows)}
        found = set()
        for (task, name), best in self._best_rates(rows).items():
            tried = sorted(self.methods[name].learning_rates)
            # By the lowest and the highest rate, the next one; none where only one rate is tried.
            beside = {tried[0]: tried[1:2], tried[-1]: tried[-2:-1]}
            nearest = beside.get(min(best), []) if len(best) == 1 else []
            tuned_on = self.tuning_tasks or (task,)
            if nearest and not any((one, name, nearest[0]) in failed for one in tuned_on):
                found.add((task, name))
        return found

    def failed_tuning_runs(self, rows: Iterable[Row]) -> list[RunSpec]:
        """The runs that should have helped to choose a learning rate and failed."""
        failed = {row["run"] for row in rows if row["state"] == "failed"}
        return [spec for spec in self.tuning_runs() if spec.id in failed]

    def _best_rates(self, rows: Iterable[Row]) -> dict[tuple[str, str], set[float]]:
        """By task and method, the rates with the best development score; only where all were tried and one worked."""
        known = {row["run"]: row for row in rows}
        best = {
            (task, name): set(method.learning_rates) for task in self.tasks for name, method in self.methods.items()
        }
        tuned: dict[tuple[str, str], dict[float, list[Row | None]]] = {}
        for spec in self.tuning_runs():
            for task in self.tasks if self.tuning_tasks else (spec.task,):
                tried = tuned.setdefault((task, spec.name), {})
                tried.setdefault(spec.learning_rate, []).append(known.get(spec.id))
        for key, tried in tuned.items():
            all_tried = all(row for own in tried.values() for row in own)
            worth = {rate: found for rate, own in tried.items() if (found := _worth(own))} if all_tried else {}
            best[key] = {rate for rate, found in worth.items() if found == max(worth.values())}
        return {key: rates for key, rates in best.items() if rates}

    def pending(self, rows: Sequence[Row], only: Sequence[str] | None = None) -> list[RunSpec]:
        """The runs that can be done now; those that wait for a learning rate come later.

        Args:
            rows: what is there.
            only: methods whose runs are wanted; None for all.
        """
        known = {row["run"] for row in rows}
        rates = self.chosen_rates(rows)
        final = [spec for spec in self.final_runs(rates) if (spec.task, spec.name) in rates]
        wanted = self.methods if only is None else only
        return [spec for spec in (*self.tuning_runs(), *final) if spec.id not in known and spec.name in wanted]

    def own(self, rows: Iterable[Row], only: Sequence[str] | None = None) -> list[Row]:
        """The rows that are runs of this study.

        Args:
            rows: what is there.
            only: methods whose runs are wanted; None for all.
        """
        rows = list(rows)
        specs = (*self.tuning_runs(), *self.final_runs(self.chosen_rates(rows)))
        ids = {spec.id for spec in specs if only is None or spec.name in only}
        return [row for row in rows if row["run"] in ids]

    def _spec(self, task: str, name: str, seed: int, rate: float, *, tuning: bool) -> RunSpec:
        # Kept, for a study is gone through after each run, and to tell the identity of its runs takes a second.
        key = (task, name, seed, rate, tuning)
        if key not in self._specs:
            self._specs[key] = RunSpec(task, name, self.methods[name], seed, rate, tuning, self.tasks[task])
        return self._specs[key]

    @cached_property
    def _specs(self) -> dict[tuple[str, str, int, float, bool], RunSpec]:
        return {}


def _worth(rows: Sequence[Row | None]) -> tuple[int, float] | None:
    """What a learning rate is worth, to be compared: how many of its runs did not fail, and their mean score."""
    scores = [row["score"] for row in rows if row and row["state"] == "done"]
    return (len(scores), statistics.mean(scores)) if scores else None


def _seeds(name: str, given: Any, example: str, where: str) -> tuple[int, ...]:
    if not isinstance(given, list) or not given or not all(type(seed) is int and seed >= 0 for seed in given):
        raise InputError(f"{where}: {name}={given!r} is not allowed; give a list such as {example}.")
    return tuple(dict.fromkeys(given))


def _tuning_seeds(values: Mapping[str, Any], seeds: Sequence[int], where: str) -> tuple[int, ...]:
    tuning_seeds = _given_tuning_seeds(values, where)
    shared = [seed for seed in tuning_seeds if seed in seeds]
    if shared:
        raise InputError(
            f"{where}: {shared[0]} is among the seeds and the tuning_seeds; learning rates are chosen on draws that no "
            "result is reported on, so change one of them."
        )
    return tuning_seeds


def _given_tuning_seeds(values: Mapping[str, Any], where: str) -> tuple[int, ...]:
    if "tuning_seed" not in values:
        return _seeds("tuning_seeds", values.get("tuning_seeds", list(TUNING_SEEDS)), "[1000, 1001, 1002]", where)
    if "tuning_seeds" in values:
        raise InputError(f"{where}: tuning_seed and tuning_seeds say the same; leave tuning_seed out.")
    seed = values["tuning_seed"]
    if type(seed) is not int or seed < 0:
        raise InputError(
            f"{where}: tuning_seed={seed!r} is not allowed; give a whole number of at least 0, or several as "
            "tuning_seeds: [1000, 1001, 1002]."
        )
    return (seed,)


def _tuning_tasks(given: Any, tasks: Mapping[str, Any], where: str) -> tuple[str, ...]:
    if given is None:
        return ()
    unknown = [name for name in given if str(name) not in tasks] if isinstance(given, list) else [given]
    if unknown:
        raise InputError(
            f"{where}: tuning_tasks={given!r} is not allowed; give a list of tasks of this study ({', '.join(tasks)})."
        )
    return tuple(dict.fromkeys(map(str, given)))


def _with_paths(options: dict[str, Any]) -> dict[str, Any]:
    """The same with whole paths of local files and folders: runs may be done in another working directory.

    An empty text names no file, and would be the path of the working directory; it is left out.
    """
    options = {key: str(value) if isinstance(value, Path) else value for key, value in options.items()}
    options = {key: value for key, value in options.items() if key not in INPUT_PATHS or value != ""}
    paths = {key: expanded(value) for key in INPUT_PATHS if isinstance(value := options.get(key), str)}
    return {**options, **{key: str(path.resolve()) for key, path in paths.items() if path.exists()}}


def _methods(given: Any, where: str) -> dict[str, Method]:
    if isinstance(given, list):
        if not all(isinstance(name, str) for name in given):
            raise InputError(f"{where}: methods={given!r} is not allowed; list names, or map names to their settings.")
        given = dict.fromkeys(given)
    methods: dict[str, Method] = {}
    for name, own in _mapping(given, f"{where}: methods").items():
        if "," in str(name):
            raise InputError(f"{where}: the name {name!r} has a comma, which separates names in --methods.")
        changes = _mapping(own, f"{where}: {name}")
        new = str(name) if "method" in changes else with_new_name(str(name))
        if new in methods:
            raise InputError(f"{where}: methods name {new!r} twice; leave {str(name)!r} out.")
        methods[new] = find_method(new, changes, where)
    return methods


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InputError(f"{where}: {value!r} is not a mapping; write 'name: value' a line.")
    return value


def _check_shared(options: Mapping[str, Any], where: str) -> None:
    RunOptions.check_names(options, where)
    if options.get("task_kind") == "generate":
        raise InputError(
            f"{where}: a comparison measures how well classes are predicted, and task_kind='generate' writes text; "
            "train such models with sptune fit, which compares them with the backbone without prompts."
        )
    for key in with_new_names(options):
        if key in PROMPT_OPTIONS:
            remedy = (
                f"does not hold for all methods; write it under a method, such as 'methods: {{spt: {{{key}: ...}}}}'"
            )
        elif key in NESTED:
            remedy = (
                "does not hold for all methods; write its options under a method, such as 'methods: {spt: "
                f"{{{'searcher' if key == 'search' else 'bottleneck_dim'}: ...}}}}'"
            )
        elif key == "learning_rate":
            remedy = "is chosen for each method; write 'learning_rates: [...]' under a method"
        elif key == "seed":
            remedy = "is of a run; write 'seeds: [...]' beside the methods and tasks"
        else:
            remedy = "is decided by the comparison itself"
        if key not in SHARED_OPTIONS:
            raise InputError(f"{where}: {key!r} {remedy}. Leave it out here.")
