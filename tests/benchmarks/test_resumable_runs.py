import json
from functools import partial

import pytest

from resumable_runs import begun_results, take_part, write_missing_rows
from sptune.runs.output_folder import read_json_lines


def write(output, keys, done):
    def run(key):
        done.append(key)
        return {"key": key}

    write_missing_rows(output, [(key, partial(run, key)) for key in keys], lambda row: row["key"])


def test_a_benchmark_goes_on_where_it_stopped(tmp_path):
    output, done = tmp_path / "results" / "rows.jsonl", []
    write(output, [1, 2], done)
    output.write_text(output.read_text() + '{"key": 3')  # killed while it wrote
    write(output, [1, 2, 3, 4], done)
    assert done == [1, 2, 3, 4]
    assert [row["key"] for row in read_json_lines(output)] == [1, 2, 3, 4]


def test_a_run_that_another_process_did_meanwhile_is_not_repeated(tmp_path):
    output, done = tmp_path / "rows.jsonl", []

    def run():
        write(output, [2], done)
        return {"key": 1}

    write_missing_rows(output, [(1, run), (2, lambda: {"key": 2, "again": True})], lambda row: row["key"])
    assert read_json_lines(output) == [{"key": 2}, {"key": 1}]


def test_processes_share_all_runs():
    parts = [take_part(range(5), f"{number}/2") for number in (1, 2)]
    assert parts == [[0, 2, 4], [1, 3]]


def test_a_file_of_results_is_gone_on_with(tmp_path):
    output = tmp_path / "results" / "speed.json"
    empty = {"machine": {"cores": 2, "torch": "2.13"}, "placement": "prepend", "settings": []}
    assert begun_results(output, empty) == empty
    begun = {"machine": empty["machine"], "settings": [1], "ratio": 2}  # from before there were placements
    output.write_text(json.dumps(begun))
    assert begun_results(output, empty, placement="prepend") == {**begun, "placement": "prepend"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"machine": {"cores": 2, "torch": "2.12"}}, "torch 2.13 instead of 2.12"),
        ({"machine": {"cores": 4, "torch": "2.13"}}, "cores 2 instead of 4"),
        ({"placement": "add"}, "placement prepend instead of add"),
    ],
)
def test_results_of_another_machine_or_version_are_neither_overwritten_nor_mixed(tmp_path, change, said):
    output = tmp_path / "speed.json"
    begun = {"machine": {"cores": 2, "torch": "2.13"}, "placement": "prepend", "settings": [1]}
    output.write_text(json.dumps(begun))
    with pytest.raises(SystemExit, match=f"{said}.*name another file"):
        begun_results(output, {**begun, "settings": [], **change})
    assert json.loads(output.read_text()) == begun
