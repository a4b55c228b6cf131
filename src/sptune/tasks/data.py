"""Reading and checking labelled text: every problem with its file, line, field and remedy, before a model is loaded."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sptune.errors import InputError
from sptune.tasks.problems import Problems, kind_of, raise_if_any
from sptune.tasks.reading import RowSource, open_datasets_name, open_file, open_split
from sptune.tasks.splits import Example, Splits, divide

TEXT_COLUMNS = ("text",)
LABEL_COLUMN = "label"
SPLIT_NAMES = {
    "train": ("train",),
    "validation": ("validation", "dev", "valid", "val"),
    "test": ("test",),
}
Opener = Callable[[], RowSource]

MOST_LABELS = 50  # more classes than this, most with one example, are no classes
FEW_OF_A_CLASS = 5  # fewer examples than this, and less than a tenth of an even share, deserve a note


def load_splits(
    *,
    train_file: str | Path | None = None,
    validation_file: str | Path | None = None,
    test_file: str | Path | None = None,
    data: str | None = None,
    data_config: str | None = None,
    split_names: Mapping[str, str | None] | None = None,
    text_columns: Sequence[str] = TEXT_COLUMNS,
    label_column: str = LABEL_COLUMN,
    labels: Sequence[str] | None = None,
    few_shot: int | None = None,
    seed: int = 0,
) -> tuple[tuple[str, ...], Splits]:
    """Labelled data from files or from a Datasets name, checked and divided.

    Args:
        train_file: .jsonl, .csv, .tsv or .parquet.
        validation_file: carved out of the training data if not given.
        test_file: carved out of the training data if not given.
        data: instead of files, a Datasets name: an id on the hub, a folder of files, or one that `save_to_disk` wrote.
        data_config: configuration of that name.
        split_names: which split of that name to use as "train", "validation" and "test", where its names are others;
            None for one that is to be carved out of the training data.
        text_columns: the column with the text; two for pairs.
        label_column: the column with the class, a name or a number.
        labels: the classes in their order. Default: those of the training data, numbers in numerical order, names in
            alphabetical order; for a Datasets class label, in the order it declares.
        few_shot: train on so many examples in all.
        seed: of every draw.

    Returns:
        The classes in their order, and the splits.

    Raises:
        InputError: what is wrong with the data, all of it at once.
    """
    notes: list[str] = []
    columns = _columns(text_columns, label_column)
    if labels is not None:
        labels = _given_labels(labels)
    if (data is None) == (train_file is None):
        raise InputError(
            "Give either files (train_file, and if you have them validation_file and test_file) or a Datasets name "
            "(data)."
        )
    if data is not None:
        if validation_file is not None or test_file is not None:
            raise InputError(
                "validation_file and test_file go with train_file, not with data; leave one or the other out."
            )
        sources = _splits_of(data, data_config, split_names or {}, columns, label_column, notes)
    else:
        assert train_file is not None
        sources = _files(train_file, validation_file, test_file)
    train_source = sources["train"]()
    train = check_examples(train_source, columns, label_column, allowed=labels)
    classes = tuple(labels) if labels is not None else _classes(train, train_source.class_names.get(label_column))
    reports = [train_source.problems]
    others: dict[str, list[Example] | None] = {"validation": None, "test": None}
    for name in others:
        if name in sources:
            source = sources[name]()
            others[name] = check_examples(
                source, columns, label_column, allowed=classes or None, train_name=None if labels else train_source.name
            )
            reports.append(source.problems)
    raise_if_any(reports)
    _check_classes(train, train_source.name, label_column, classes, notes)
    if labels is None and label_column not in train_source.class_names:
        _check_spelling(train, train_source.name, label_column)
        notes.extend(_scarce(train, train_source.name))
    splits = divide(
        train, others["validation"], others["test"], few_shot_count=few_shot, seed=seed, source=train_source.name
    )
    splits.notes[:0] = notes
    return classes, splits


def read_labelled(
    path: str | Path,
    text_columns: Sequence[str] = TEXT_COLUMNS,
    label_column: str = LABEL_COLUMN,
    *,
    labels: Sequence[str],
) -> list[Example]:
    """The examples of one file, whose classes are known already.

    Raises:
        InputError: what is wrong with the file.
    """
    source = open_file(path)
    examples = check_examples(source, _columns(text_columns, label_column), label_column, allowed=_given_labels(labels))
    raise_if_any([source.problems])
    return examples


def read_unlabelled(path: str | Path, text_columns: Sequence[str] = TEXT_COLUMNS) -> list[Example]:
    """The texts of one file, without labels.

    Raises:
        InputError: what is wrong with the file.
    """
    source = open_file(path)
    examples = check_examples(source, _columns(text_columns, None), None)
    raise_if_any([source.problems])
    return examples


def check_examples(
    source: RowSource,
    text_columns: Sequence[str],
    label_column: str | None,
    *,
    allowed: Collection[str] | None = None,
    train_name: str | None = None,
) -> list[Example]:
    """The good rows of a source as examples; what is wrong with the others goes into the source's problems.

    Args:
        source: the rows.
        text_columns: the columns with text.
        label_column: the column with the label, or None.
        allowed: the classes there are; None for any.
        train_name: where the classes come from, for the message; None if they were given.
    """
    problems = source.problems
    wanted = [*text_columns, *([label_column] if label_column is not None else [])]
    if source.columns is not None and _report_missing(source, wanted, source.columns):
        return []
    examples: list[Example] = []
    unknown: list[tuple[int, str]] = []
    absent: dict[str, list[int]] = {column: [] for column in wanted}
    seen_columns: dict[str, None] = {}
    count = 0
    for line, values in source.rows:
        count += 1
        seen_columns.update(dict.fromkeys(values))
        lacking = [column for column in wanted if column not in values]
        for column in lacking:
            absent[column].append(line)
        if lacking:
            continue
        fields = {column: _text(values[column], column, line, problems) for column in text_columns}
        label = None
        if label_column is not None:
            label = _label(values[label_column], label_column, source.class_names.get(label_column), line, problems)
            if label is not None and allowed is not None and label not in allowed:
                unknown.append((line, label))
                continue
        texts = {column: text for column, text in fields.items() if text is not None}
        if len(texts) == len(fields) and (label is not None or label_column is None):
            examples.append(Example(texts, label, problems.place(line)))
    if not count and not problems.count:
        problems.add(
            "empty: there is a header but no row" if source.columns else "empty: there is no example in it",
            "Put in at least one example, or leave the file out.",
        )
    _report_absent(source, absent, count, list(seen_columns))
    _report_unknown(problems, unknown, count, label_column, allowed, train_name)
    return examples


def _report_missing(source: RowSource, wanted: Sequence[str], columns: Sequence[str]) -> bool:
    missing = [column for column in wanted if column not in columns]
    if not columns and not source.problems.count:
        source.problems.add(
            "empty: there is not even a header", "Put in a line with the names of the columns, then data."
        )
    elif columns:
        for column in missing:
            source.problems.add(f"no column {column!r}; {_found_columns(columns)}", _column_remedy(columns))
    return bool(missing)


def _report_absent(source: RowSource, absent: dict[str, list[int]], count: int, seen: Sequence[str]) -> None:
    for column, lines in absent.items():
        if count and len(lines) == count:
            source.problems.add(f"no line has a field {column!r}; {_found_columns(seen)}", _column_remedy(seen))
            continue
        for line in lines:
            source.problems.add(
                "missing, though other lines have it", "Add it, or take the line out.", line=line, field=column
            )


def _found_columns(columns: Sequence[str]) -> str:
    shown = ", ".join(repr(column) for column in columns[:20])
    return f"found {shown}" + (f" and {len(columns) - 20} more" if len(columns) > 20 else "")


def _column_remedy(columns: Sequence[str]) -> str:
    if len(columns) == 1 and any(separator in columns[0] for separator in ";\t|,"):
        return "The columns seem to be separated by another character; save as .csv with commas or as .tsv with tabs."
    return "Name the right column (text_columns, label_column). A CSV or TSV file names its columns in its first line."


def _report_unknown(
    problems: Problems,
    unknown: Sequence[tuple[int, str]],
    count: int,
    column: str | None,
    allowed: Collection[str] | None,
    train_name: str | None,
) -> None:
    known = ", ".join(map(repr, list(allowed or [])[:20])) + (", …" if len(allowed or []) > 20 else "")
    remedy = "Use the same names or numbers for the classes everywhere, or " + (
        "put examples of it into the training data."
        if train_name
        else "when you train, name the classes there are (labels=...)."
    )
    if len(unknown) > 1 and len(unknown) == count:
        names = ", ".join(map(repr, sorted({label for _, label in unknown})[:10]))
        origin = f"was seen in training ({train_name} has {known})" if train_name else f"is one of {known}"
        problems.add(f"none of its labels ({names}) {origin}", remedy, field=column)
        return
    origin = f"was never seen in training ({train_name} has {known})" if train_name else f"is not one of {known}"
    for line, label in unknown:
        problems.add(f"this label {origin}", remedy, line=line, field=column, value=label)


def _text(value: Any, column: str, line: int, problems: Problems) -> str | None:
    if isinstance(value, str):
        if not value.strip():
            problems.add("empty text", "Write the text, or take the line out.", line=line, field=column, value=value)
            return None
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            problems.add(
                "half a surrogate pair, which is no character",
                "Write the file anew as UTF-8.",
                line=line,
                field=column,
                value=value,
            )
            return None
        return value
    if value is None:
        problems.add("empty text", "Write the text, or take the line out.", line=line, field=column, value=value)
    else:
        problems.add(
            f"a {kind_of(value)}, not text",
            "Name a column that holds text, or put the value in quotation marks.",
            line=line,
            field=column,
            value=value,
        )
    return None


def _label(value: Any, column: str, names: Sequence[str] | None, line: int, problems: Problems) -> str | None:
    """A label as the name of its class; None, and a problem noted, if there is none."""
    if names is not None and isinstance(value, int):
        value = names[value] if 0 <= value < len(names) else None
    if isinstance(value, float) and math.isnan(value):
        value = None
    if value is None or (isinstance(value, str) and not value.strip()):
        problems.add("no label", "Write the class, or take the line out.", line=line, field=column, value=value)
        return None
    if not isinstance(value, str | int | float):
        problems.add(
            f"a {kind_of(value)}, not one class",
            "Write one name or number; an example with several classes is not supported.",
            line=line,
            field=column,
            value=value,
        )
        return None
    return _label_name(value)


def _label_name(value: str | int | float) -> str:
    """Names without spaces around them, whole numbers without a decimal point, true and false in small letters."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _columns(text_columns: Sequence[str], label_column: str | None) -> tuple[str, ...]:
    columns = (text_columns,) if isinstance(text_columns, str) else tuple(text_columns)
    if not columns or len(set(columns)) < len(columns) or label_column in columns:
        raise InputError(
            f"text_columns {', '.join(map(repr, columns)) or 'none'} and label_column {label_column!r}: name at "
            "least one column with text, each column once."
        )
    return columns


def _given_labels(labels: Sequence[str]) -> tuple[str, ...]:
    names = tuple(_label_name(label) for label in labels)
    if len(names) < 2 or len(set(names)) < len(names):
        raise InputError(f"labels is {', '.join(names) or 'empty'}; give at least two different classes, each once.")
    return names


def _classes(examples: Sequence[Example], declared: Sequence[str] | None) -> tuple[str, ...]:
    seen = {example.label for example in examples if example.label is not None}
    if declared is not None:
        return tuple(name for name in declared if name in seen)
    numbers = {name: _number(name) for name in seen}
    if all(number is not None for number in numbers.values()):
        return tuple(sorted(seen, key=lambda name: (numbers[name], name)))
    return tuple(sorted(seen))


def _number(name: str) -> float | None:
    try:
        number = float(name)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _check_classes(
    train: Sequence[Example], source: str, column: str, classes: Sequence[str], notes: list[str]
) -> None:
    seen = {example.label for example in train}
    if len(seen) < 2:
        raise InputError(
            f"{source}, field {column!r}, value {next(iter(seen))!r}: all {len(train)} examples have this one label. A "
            "classifier needs at least two classes; add examples of another, or name another label column."
        )
    if len(seen) > MOST_LABELS and len(seen) > len(train) / 2:
        raise InputError(
            f"{source}, field {column!r}: {len(seen)} different labels in {len(train)} examples, such as "
            f"{train[0].label!r}. This looks like a number to predict or an identifier, not a class; name another "
            "label column."
        )
    notes.extend(
        f"The class {name!r} has no example in {source}: it will not be learned."
        for name in classes
        if name not in seen
    )


def _check_spelling(train: Sequence[Example], source: str, column: str) -> None:
    """Refuse classes whose names differ only in case or spaces: most often one of them is a slip."""
    count = Counter(example.label for example in train if example.label is not None)
    spellings: dict[str, str] = {}
    for name in count:
        other = spellings.setdefault("".join(name.split()).casefold(), name)
        if other != name:
            rare, common = sorted((name, other), key=lambda one: count[one])
            place = next(example.where for example in train if example.label == rare)
            raise InputError(
                f"{place}, field {column!r}, value {rare!r}: there is the class {common!r}, too, with "
                f"{count[common]} examples in {source}, and {count[rare]} of {rare!r}. Write them alike, or, if they "
                "are two classes, name all classes there are (labels=...)."
            )


def _scarce(train: Sequence[Example], source: str) -> list[str]:
    """A note on each class with so few examples that it may be a slip, and will hardly be learned."""
    count = Counter(example.label for example in train)
    return [
        f"The class {name!r} has {number} of the {len(train)} examples in {source}: it will hardly be learned."
        for name, number in count.items()
        if number < FEW_OF_A_CLASS and number * len(count) * 10 < len(train)
    ]


def _files(
    train_file: str | Path, validation_file: str | Path | None, test_file: str | Path | None
) -> dict[str, Opener]:
    """How to open each file that is given; those missing are found out before any is read."""
    given = {"train": train_file, "validation": validation_file, "test": test_file}
    paths = {name: Path(path) for name, path in given.items() if path is not None}
    resolved: dict[Path, str] = {}
    for name, path in paths.items():
        other = resolved.setdefault(path.resolve(), name)
        if other != name:
            raise InputError(
                f"{other}_file and {name}_file are the same file, {path}. Scores on training data mean nothing; leave "
                f"{name}_file out and it is carved out of the training data."
            )
    return {name: partial(open_file, path) for name, path in paths.items()}


def _splits_of(
    name: str,
    config: str | None,
    split_names: Mapping[str, str | None],
    columns: Sequence[str],
    label_column: str,
    notes: list[str],
) -> dict[str, Opener]:
    """How to open each split of a Datasets name that there is."""
    loaded = open_datasets_name(name, config)
    chosen: dict[str, str] = {}
    for role, usual in SPLIT_NAMES.items():
        if role in split_names:
            wanted = split_names[role]
            if wanted is not None and wanted not in loaded:
                raise InputError(
                    f"The data {name!r} have no split {wanted!r}; they have {', '.join(loaded)}. Choose one of these "
                    f"for {role!r} (split_names)."
                )
            if wanted is not None:
                chosen[role] = wanted
        else:
            found = [split for split in usual if split in loaded]
            if found:
                chosen[role] = found[0]
    if "train" not in chosen:
        if len(loaded) != 1:
            raise InputError(
                f"The data {name!r} have no split 'train'; they have {', '.join(loaded)}. Name the one to train on "
                "(split_names)."
            )
        chosen["train"] = next(iter(loaded))
    for role in ("test", "validation"):
        if role in chosen and _is_unlabelled(loaded[chosen[role]], label_column):
            split = chosen.pop(role)
            notes.append(f"The labels of {name}[{split}] are withheld: it is not used.")
            if role == "test" and "validation" in chosen:
                chosen["test"] = chosen.pop("validation")
                notes.append(f"{name}[{chosen['test']}] is the test data.")
    wanted_columns = [*columns, label_column]
    return {role: partial(open_split, name, split, loaded[split], wanted_columns) for role, split in chosen.items()}


def _is_unlabelled(dataset: Any, label_column: str) -> bool:
    """Whether a split's labels are withheld, as benchmarks do with their test data: None, or -1 for a class label."""
    import datasets

    feature = dataset.features.get(label_column)
    if feature is None or not len(dataset):
        return False
    withheld = {None, -1} if isinstance(feature, datasets.ClassLabel) else {None}
    return set(dataset.unique(label_column)) <= withheld
