"""Reading and checking labelled text: every problem with its file, line, field and remedy, before a model is loaded."""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

from sptune.errors import InputError
from sptune.tasks.named import Opener, open_data
from sptune.tasks.problems import Problems, kind_of, raise_if_any
from sptune.tasks.reading import Repeated, RowSource, open_file
from sptune.tasks.spelling import is_blank, look, spelled
from sptune.tasks.splits import Example, Splits, divide

logger = logging.getLogger(__name__)

TEXT_COLUMNS = ("text",)
LABEL_COLUMN = "label"
SPLIT_NAMES = {
    "train": ("train",),
    "validation": ("validation", "dev", "valid", "val"),
    "test": ("test",),
}

MOST_LABELS = 50  # more classes than this, most with one example, are no classes
MOST_FRACTIONS = 20  # more fractional numbers than this are scores; so are fewer in as many as half of the examples
MOST_RATINGS = 20  # more whole numbers than this deserve a note
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
    """Labelled data from files or from a data set by name, checked and divided.

    Args:
        train_file: .jsonl, .csv, .tsv or .parquet.
        validation_file: carved out of the training data if not given.
        test_file: carved out of the training data if not given.
        data: instead of files, a data set: an id on the hub, a folder of files, one that `save_to_disk` wrote, or a
            single file. Local files are read as those above.
        data_config: its configuration.
        split_names: which of its splits to use as "train", "validation" and "test", where its names are others; None
            for one that is to be carved out of the training data.
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
            "Give either files (train_file, and if you have them validation_file and test_file) or a data set by "
            "name (data)."
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
    opened = {role: opener() for role, opener in sources.items()}
    train_name = _name(opened["train"])
    declared = opened["train"][0].class_names.get(label_column)
    is_open = labels is None and declared is None  # then any label may be a slip, or no class at all
    train = _check_files(opened["train"], columns, label_column, allowed=labels)
    if is_open:
        _check_numbers(train, train_name, label_column, notes)
    classes = tuple(labels) if labels is not None else _classes(train, declared)
    others: dict[str, list[Example] | None] = {"validation": None, "test": None}
    for role in others:
        if role in opened:
            others[role] = _check_files(
                opened[role], columns, label_column, allowed=classes or None, train_name=None if labels else train_name
            )
    files = [file for files in opened.values() for file in files]
    raise_if_any([file.problems for file in files])
    notes.extend(note for file in files for note in file.notes)
    _check_classes(train, train_name, label_column, classes, notes)
    if is_open:
        _check_spelling(train, train_name, label_column)
        notes.extend(_scarce(train, train_name))
    splits = divide(train, others["validation"], others["test"], few_shot_count=few_shot, seed=seed, source=train_name)
    splits.notes[:0] = notes
    return classes, splits


def _name(files: Sequence[RowSource]) -> str:
    return files[0].name + (f" and {len(files) - 1} more" if len(files) > 1 else "")


def _check_files(files: Sequence[RowSource], *arguments: Any, **options: Any) -> list[Example]:
    """The good rows of a split's files; see `check_examples`."""
    return [example for file in files for example in check_examples(file, *arguments, **options)]


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
    _finish(source)
    return examples


def read_unlabelled(path: str | Path, text_columns: Sequence[str] = TEXT_COLUMNS) -> list[Example]:
    """The texts of one file, without labels.

    Raises:
        InputError: what is wrong with the file.
    """
    source = open_file(path)
    examples = check_examples(source, _columns(text_columns, None), None)
    _finish(source)
    return examples


def _finish(source: RowSource) -> None:
    raise_if_any([source.problems])
    for note in source.notes:
        logger.warning("%s", note)


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
    if source.columns is not None and _report_header(source, wanted, source.columns):
        return []
    examples: list[Example] = []
    unknown: list[tuple[int, str]] = []
    unlabelled: list[tuple[int, Any]] = []
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
        repeated = [column for column in wanted if isinstance(values[column], Repeated)]
        for column in repeated:
            problems.add("stands in this object more than once", "Keep one of them.", line=line, field=column)
        if repeated:
            continue
        fields = {column: _text(values[column], column, line, problems) for column in text_columns}
        label = None
        if label_column is not None:
            names = source.class_names.get(label_column)
            if _is_missing(values[label_column], names):
                is_nan = isinstance(values[label_column], float) and math.isnan(values[label_column])
                unlabelled.append((line, None if is_nan else values[label_column]))
                continue
            label = _label(values[label_column], label_column, names, line, problems)
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
    if label_column is not None:
        _report_unlabelled(problems, unlabelled, count, label_column)
    _report_unknown(problems, unknown, count, label_column, allowed, train_name)
    return examples


def _report_header(source: RowSource, wanted: Sequence[str], columns: Sequence[str]) -> bool:
    """Whether wanted columns are missing, or named more than once."""
    missing = [column for column in wanted if column not in columns]
    repeated = [column for column in wanted if columns.count(column) > 1]
    if not columns and not source.problems.count:
        source.problems.add(
            "empty: there is not even a header", "Put in a line with the names of the columns, then data."
        )
    elif columns:
        for column in missing:
            source.problems.add(
                f"no column {column!r}; {_found_columns(columns)}", _column_remedy(columns, column, source.name)
            )
    for column in repeated:
        source.problems.add(
            f"there are {columns.count(column)} columns {column!r}", "Rename those that are not to be read."
        )
    return bool(missing or repeated)


def _report_absent(source: RowSource, absent: dict[str, list[int]], count: int, seen: Sequence[str]) -> None:
    for column, lines in absent.items():
        if count and len(lines) == count:
            source.problems.add(
                f"no line has a field {column!r}; {_found_columns(seen)}", _column_remedy(seen, column, source.name)
            )
            continue
        for line in lines:
            source.problems.add(
                "missing, though other lines have it", "Add it, or take the line out.", line=line, field=column
            )


def _report_unlabelled(problems: Problems, unlabelled: Sequence[tuple[int, Any]], count: int, column: str) -> None:
    if len(unlabelled) > 1 and len(unlabelled) == count:
        problems.add(
            f"none of its {count} rows has a label",
            "Name the column that holds the class (label_column), or leave these data out if they have none.",
            field=column,
            value=unlabelled[0][1],
        )
        return
    for line, value in unlabelled:
        found, remedy = "no label", "Write the class, or take the line out."
        if isinstance(value, int):
            found = "no label, which is what -1 stands for among class labels"
            remedy = _filter_remedy(column, value)
        problems.add(found, remedy, line=line, field=column, value=value)


def _filter_remedy(column: str, value: Any) -> str:
    return (
        f"Take such rows out: load the data with Datasets, data.filter(lambda row: row[{column!r}] != {value!r})"
        ".save_to_disk(FOLDER), and give the folder as data."
    )


def _found_columns(columns: Sequence[str]) -> str:
    shown = ", ".join(repr(column) for column in columns[:20])
    return f"found {shown}" + (f" and {len(columns) - 20} more" if len(columns) > 20 else "")


def _column_remedy(columns: Sequence[str], wanted: str, source: str) -> str:
    alike = next((column for column in columns if look(column) == look(wanted)), None)
    if alike is not None:
        return f"{spelled(alike, wanted)} looks like it: write {spelled(wanted, alike)} in one and the other."
    found = next((separator for separator in ";\t|," if len(columns) == 1 and separator in columns[0]), None)
    if found is not None:
        remedy = "The columns seem to be separated by another character; save as .csv with commas or as .tsv with tabs"
        return f"{remedy}, or put a line 'sep={found}' before the header."
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
    looks = {look(name): name for name in allowed or []}
    if len(unknown) > 1 and len(unknown) == count and not any(look(label) in looks for _, label in unknown):
        names = ", ".join(map(repr, sorted({label for _, label in unknown})[:10]))
        origin = f"was seen in training ({train_name} has {known})" if train_name else f"is one of {known}"
        problems.add(f"none of its labels ({names}) {origin}", remedy, field=column)
        return
    origin = f"was never seen in training ({train_name} has {known})" if train_name else f"is not one of {known}"
    for line, label in unknown:
        alike = looks.get(look(label))
        if alike is None:
            problems.add(f"this label {origin}", remedy, line=line, field=column, value=label)
            continue
        found = f"this label {origin}; {spelled(label, alike)} only looks like {spelled(alike, label)}"
        problems.add(found, "Write them alike.", line=line, field=column, value=label)


def _text(value: Any, column: str, line: int, problems: Problems) -> str | None:
    if isinstance(value, str):
        if is_blank(value):
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


def _is_missing(value: Any, names: Sequence[str] | None) -> bool:
    """Whether there is no label; for the index of one of these class names, -1 is none."""
    if isinstance(value, str):
        return is_blank(value)
    return value is None or (isinstance(value, float) and math.isnan(value)) or (names is not None and value == -1)


def _label(value: Any, column: str, names: Sequence[str] | None, line: int, problems: Problems) -> str | None:
    """A label as the name of its class; None, and a problem noted, if there is none."""
    if names is not None:
        return _declared_label(value, column, names, line, problems)
    if not isinstance(value, str | int | float | Decimal):
        problems.add(
            f"a {kind_of(value)}, not one class",
            "Write one name or number; an example with several classes is not supported.",
            line=line,
            field=column,
            value=value,
        )
        return None
    return _label_name(value)


def _declared_label(value: Any, column: str, names: Sequence[str], line: int, problems: Problems) -> str | None:
    """The label where class names are declared: one of them or its index, which text files write as text."""
    if isinstance(value, str) and value in names:
        return value
    written = [str(index) for index in range(len(names))]
    index = written.index(value) if value in written else value
    if isinstance(index, int) and 0 <= index < len(names):
        return names[index]
    known = ", ".join(f"{number} ({name})" for number, name in enumerate(names[:20])) + (", …" if names[20:] else "")
    problems.add(
        f"not one of the declared classes {known}", _filter_remedy(column, value), line=line, field=column, value=value
    )
    return None


def _label_name(value: str | int | float | Decimal) -> str:
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


def _check_numbers(train: Sequence[Example], source: str, column: str, notes: list[str]) -> None:
    """Refuse a column of scores; note one of many whole numbers.

    Numbers of sections or versions (1.1, 1.10) and half stars are classes, and few. Scores are many, or so many for the
    examples there are that most have an example or two.
    """
    labels = dict.fromkeys(example.label for example in train if example.label is not None)
    numbers = {label: number for label in labels if (number := _written_number(label)) is not None}
    fractions = [label for label, number in numbers.items() if not number.is_integer()]
    are_many = len(fractions) > min(MOST_FRACTIONS, max(len(train) / 2, FEW_OF_A_CLASS))
    if are_many and len(fractions) > len(labels) / 2:
        raise InputError(
            f"{source}, field {column!r}: {len(labels)} different labels in {len(train)} examples, {len(fractions)} of "
            f"them fractional, such as {', '.join(map(repr, fractions[:3]))}. This looks like a number to predict, not "
            "a class. Name another label column, or write a few classes, such as low and high, in place of the "
            "numbers; if they are classes, name all of them (labels=...)."
        )
    if len(numbers) == len(labels) > MOST_RATINGS and not fractions:
        notes.append(
            f"{source}, field {column!r}: {len(labels)} different whole numbers. Each is a class of its own; that they "
            "have an order is not learned."
        )


def _written_number(label: str) -> float | None:
    """The number that a label writes; a comma may stand for the decimal point, a percent sign at its end."""
    text = label.rstrip("%").strip()
    is_decimal_comma = re.fullmatch(r"[+-]?\d*,(\d{1,2}|\d{4,})", text)
    return _number(text.replace(",", ".") if is_decimal_comma else text)


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
    """Refuse classes whose names look alike, as those that differ in case only: most often one of them is a slip."""
    count = Counter(example.label for example in train if example.label is not None)
    spellings: dict[str, str] = {}
    for name in count:
        other = spellings.setdefault(look(name), name)
        if other != name:
            rare, common = sorted((name, other), key=lambda one: count[one])
            place = next(example.where for example in train if example.label == rare)
            raise InputError(
                f"{place}, field {column!r}, value {spelled(rare, common)}: there is the class "
                f"{spelled(common, rare)}, too, with {count[common]} examples in {source}, and {count[rare]} of the "
                "other. Write them alike, or, if they are two classes, name all classes there are (labels=...)."
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
    return {name: partial(_open_one, path) for name, path in paths.items()}


def _open_one(path: Path) -> list[RowSource]:
    return [open_file(path)]


def _splits_of(
    name: str,
    config: str | None,
    split_names: Mapping[str, str | None],
    columns: Sequence[str],
    label_column: str,
    notes: list[str],
) -> dict[str, Opener]:
    """How to open each split of a data set that there is."""
    loaded, found_out = open_data(name, config, [*columns, label_column])
    notes.extend(found_out)
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
        if role in chosen and (reason := _why_unused(loaded[chosen[role]](), label_column)):
            split = chosen.pop(role)
            notes.append(f"{reason.format(split=f'{name}[{split}]')}: it is not used.")
            if role == "test" and "validation" in chosen:
                chosen["test"] = chosen.pop("validation")
                notes.append(f"{name}[{chosen['test']}] is the test data.")
    return {role: loaded[split] for role, split in chosen.items()}


def _why_unused(files: Sequence[RowSource], label_column: str) -> str | None:
    """Why a split cannot be used: it has no rows, or its labels are withheld, as benchmarks do with their test data."""
    is_empty = True
    for file in files:
        names = file.class_names.get(label_column)
        for _, values in file.rows:
            is_empty = False
            if label_column not in values or not _is_missing(values[label_column], names):
                return None
    if is_empty:
        return "{split} has no rows" if all(file.columns and not file.problems.count for file in files) else None
    return "The labels of {split} are withheld"
