"""The commands that use adapters or list what there is, and the command line as a whole."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

import sptune.cli.run_commands  # noqa: F401 (adds its commands)
from sptune.cli.app import FAILED, app, running, with_exit_codes
from sptune.cli.plain_text import escape
from sptune.cli.system_errors import in_words
from sptune.cli.terminal import print_json, print_labels, print_run, results, shown, written
from sptune.extras import require

JsonFlag = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object, for machines.")]
OverwriteFlag = Annotated[bool, typer.Option("--overwrite", help="Replace the file that --output names.")]
PromptColumn = Annotated[
    str | None, typer.Option("--prompt-column", help="Column with the prompt. Default: as in training.")
]
MessagesColumn = Annotated[
    str | None, typer.Option("--messages-column", help="Column with lists of messages. Default: as in training.")
]
MaxNewTokens = Annotated[
    int | None,
    typer.Option("--max-new-tokens", help="Maximum length of a written text in tokens. Default: as in training."),
]
AdaptersOption = Annotated[
    list[str],
    typer.Option(
        "--adapter", help="Adapter folder that a run wrote; with --adapter-column several, also as NAME=FOLDER."
    ),
]
AdapterOption = Annotated[Path, typer.Option("--adapter", help="Adapter folder that a run wrote.")]


@app.command()
@with_exit_codes
def evaluate(
    adapter: AdapterOption,
    test_file: Annotated[Path, typer.Option(help="Labeled data: .jsonl, .csv, .tsv or .parquet.")],
    text_column: Annotated[
        list[str] | None, typer.Option(help="Column with the text; twice for pairs. Default: as in training.")
    ] = None,
    label_column: Annotated[str | None, typer.Option(help="Column with the label. Default: as in training.")] = None,
    prompt_column: PromptColumn = None,
    completion_column: Annotated[
        str | None, typer.Option(help="Column with the completion. Default: as in training.")
    ] = None,
    messages_column: MessagesColumn = None,
    max_new_tokens: MaxNewTokens = None,
    output: Annotated[Path | None, typer.Option(help="Write predictions here, as JSON Lines.")] = None,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Score an adapter on labeled data, or on prompts with completions."""
    with running(alone="evaluate") as stages:
        from sptune.saved_adapters import inference

        metrics = inference.evaluate(
            adapter,
            test_file,
            text_columns=text_column,
            label_column=label_column,
            prompt_column=prompt_column,
            completion_column=completion_column,
            messages_column=messages_column,
            max_new_tokens=max_new_tokens,
            output=output,
            overwrite=overwrite,
            monitor=stages,  # type: ignore[arg-type]
        )
    if as_json:
        print_json(metrics)
        return
    if metrics.get("score") in [value for name, value in metrics.items() if name != "score"]:
        del metrics["score"]  # the task's only metric, which is shown by its own name
    labels = metrics.pop("labels", None)
    width = max(10, *(len(name) for name in metrics))
    for name, value in metrics.items():
        results.print(f"{name:{width}} {written(value) if value is None or isinstance(value, float) else value}")
    if labels:
        print_labels(labels)


@app.command()
@with_exit_codes
def predict(
    adapter: AdaptersOption,
    input: Annotated[Path, typer.Option("--input", help="Texts or prompts: .jsonl, .csv, .tsv or .parquet.")],
    output: Annotated[
        Path | None, typer.Option(help="Write predictions here, as JSON Lines. Default: print them.")
    ] = None,
    adapter_column: Annotated[
        str | None,
        typer.Option(help="Column that names each row's adapter. An adapter without NAME= has that of its folder."),
    ] = None,
    text_column: Annotated[
        list[str] | None, typer.Option(help="Column with the text; twice for pairs. Default: as in training.")
    ] = None,
    prompt_column: PromptColumn = None,
    messages_column: MessagesColumn = None,
    max_new_tokens: MaxNewTokens = None,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Predict the class, the labels or a number for new texts, or write what follows prompts."""
    with running(alone="predict") as stages:
        from sptune.saved_adapters import inference

        rows = inference.predict(
            adapter,
            input,
            output,
            adapter_column=adapter_column,
            text_columns=text_column,
            prompt_column=prompt_column,
            messages_column=messages_column,
            max_new_tokens=max_new_tokens,
            overwrite=overwrite,
            monitor=stages,  # type: ignore[arg-type]
        )
    if as_json:
        print_json({"predictions": len(rows), "output": str(output)} if output else rows)
    elif output is not None:
        results.print(f"{len(rows)} predictions are in {escape(str(output))}")
    else:
        for row in rows:
            print_json(row)


@app.command()
@with_exit_codes
def serve(
    adapters: Annotated[
        list[str], typer.Argument(help="Adapter folders that runs wrote, on one backbone; also as NAME=FOLDER.")
    ],
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 for all of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at.")] = 8000,
    replicas: Annotated[int, typer.Option(help="Processes with the backbone and all adapters.")] = 1,
    root: Annotated[
        Path | None, typer.Option(help="Folder from which requests may add adapters. Default: none are added.")
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="Port of Ray's metrics, for Prometheus. Default: any that is free.")
    ] = None,
) -> None:
    """Serve adapters over HTTP with Ray Serve (needs the extra 'serve'). Ctrl-C stops it."""
    from sptune.serve.server import check_installed, serving, wait_for_end

    check_installed()
    with running(alone="serve") as stages:
        stages.stage("Starting Ray Serve and loading the backbone")
        with serving(adapters, host=host, port=port, replicas=replicas, root=root, metrics_port=metrics_port) as url:
            stages.stage(f"Serving at {url}")
            wait_for_end()
            stages.stage("Stopping")


@app.command(name="inspect")
@with_exit_codes
def inspect_adapter(adapter: AdapterOption, as_json: JsonFlag = False) -> None:
    """Show what an adapter is."""
    from sptune.saved_adapters import inference

    about = inference.inspect(adapter)
    if as_json:
        print_json(about)
        return
    table = Table(show_header=False, box=None)
    for name, value in about.items():
        if value is None:
            continue
        if isinstance(value, dict):
            value = ", ".join(f"{key} {shown(one)}" for key, one in value.items() if one not in (None, [], ""))
        table.add_row(name.replace("_", " "), escape(shown(value)))
    results.print(table)


@app.command()
@with_exit_codes
def report(
    folder: Annotated[Path, typer.Argument(help="Output folder of a run or of a comparison.")],
    as_json: JsonFlag = False,
) -> None:
    """Write report.html of a run or a comparison anew: a page that opens without a network."""
    from sptune.errors import InputError

    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder; name the output folder of a run or of a comparison.")
    with running():
        from sptune.compare.comparison_report import SUMMARY_FILE, write_comparison_report
        from sptune.compare.run_log import LOCKS_FOLDER, ROWS_FILE
        from sptune.runs.run_report import write_run_report

        compared = any((folder / name).exists() for name in (SUMMARY_FILE, ROWS_FILE, LOCKS_FOLDER))
        write = write_comparison_report if compared else write_run_report
        try:
            path = write(folder)
        except OSError as error:
            raise InputError(f"{folder}: the report cannot be written ({error.strerror or error}).") from None
    if as_json:
        print_json({"report": str(path)})
    else:
        results.print(escape(str(path)))


@app.command()
@with_exit_codes
def tasks(as_json: JsonFlag = False) -> None:
    """List the benchmark tasks."""
    from sptune.tasks import BENCHMARK_TASKS

    described = {name: task.to_dict() for name, task in BENCHMARK_TASKS.items()}
    if as_json:
        print_json(described)
        return
    table = Table("task", "text columns", "template", "classes: label words", "metrics")
    for name, task in described.items():
        words = ", ".join(f"{label}: {word}" for label, word in zip(task["labels"], task["label_words"], strict=True))
        row = (name, ", ".join(task["text_fields"]), task["template"], words, ", ".join(task["metrics"]))
        table.add_row(*map(escape, row))
    results.print(table)


@app.command()
@with_exit_codes
def models(as_json: JsonFlag = False) -> None:
    """List the model families that take prompts in front of the text (--placement prepend)."""
    from sptune.modeling.prepend.families import FAMILIES

    described = {name: {"attention": "causal" if family.causal else "both ways"} for name, family in FAMILIES.items()}
    if as_json:
        print_json(described)
        return
    table = Table("family", "attention", "tasks", title="With --placement prepend", title_justify="left")
    for name, about in described.items():
        kinds = _tasks_of(name, about["attention"] == "causal")
        table.add_row(name, about["attention"], kinds)
    results.print(table)
    results.print("Another family with blocks like Llama's or BERT's: name its list of blocks with --layers-path.")
    results.print(
        "The default, --placement add, also takes other transformers with a list of blocks, such as T5 or Gemma."
    )


def _tasks_of(family: str, causal: bool) -> str:
    """The kinds of tasks that a family can do."""
    if family == "electra":
        return "classifier, multi_label, regression, verbalizer with a generator checkpoint"
    return "verbalizer, classifier, multi_label, regression" + (", generate" if causal else "")


@app.command()
@with_exit_codes
def demo(
    output: Annotated[Path, typer.Option(help="Folder for what the run writes.")] = Path("runs/demo"),
    overwrite: Annotated[bool, typer.Option(help="Replace the run that the folder holds.")] = False,
) -> None:
    """Search, train and compare on MiniLM-L6 and movie reviews (needs the extra 'demo')."""
    require("demo", "The demo")
    with running(alone="demo") as stages:
        from sptune.runs.demo import run_demo, summary

        run = run_demo(output, overwrite=overwrite, monitor=stages)  # type: ignore[arg-type]
    print_run(run, as_json=False)
    print_json(summary(run))


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave with its exit code."""
    if hasattr(sys.stdout, "reconfigure"):  # what the stream's encoding lacks is spelled out
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app(args=arguments, prog_name="sptune")
    except Exception as error:  # outside of commands that load models, such as too little memory to read options
        told = in_words(error)
        if told is None:
            raise
        print(f"Error: {told}", file=sys.stderr)  # Rich takes memory that may not be there
        sys.exit(FAILED)
    sys.exit(0)
