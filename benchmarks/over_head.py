"""How much `sptune fit` gains over the same head alone (verbalizer: over zero-shot), over seeds.

Each seed is one run of `sptune.fit`, whose metrics.json holds both; a finished run is not repeated and an interrupted
one goes on. Data and backbone are the caller's:

    python benchmarks/over_head.py --config trec.yaml --output runs/trec --seeds 0 1 2 --json results/trec.json

where trec.yaml holds options of `sptune fit`, such as model, train_file, test_file and few_shot.
"""

import argparse
import json
import statistics
from pathlib import Path

import yaml

from sptune import fit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="YAML file with options of sptune fit")
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs, one folder a seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", type=Path, help="where to write the table")
    given = parser.parse_args()
    options = yaml.safe_load(given.config.read_text())
    rows = []
    for seed in given.seeds:
        folder = given.output / f"seed-{seed}"
        run = fit(**options, seed=seed, output_dir=str(folder), resume=(folder / "config.yaml").exists())
        metrics = run.metrics
        rows.append(
            {
                "seed": seed,
                "prompt_layers": run.prompt_layers,
                "test": metrics["test"]["score"],
                "baseline": metrics["baseline"]["test"]["score"],
                "gain": metrics["gain"]["test"]["score"],
                "test_examples": metrics["test"]["examples"],
                "trainable_parameters": metrics["parameters"]["trainable"],
                "search_share": metrics["search_share"],
                "versions": metrics["versions"],
            }
        )
        print(json.dumps(rows[-1]))
    table = {"options": options, "runs": rows}
    for name in ("test", "baseline", "gain"):
        values = [row[name] for row in rows]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        table[name] = {"mean": statistics.mean(values), "standard_deviation": spread}
    print(json.dumps({name: table[name] for name in ("test", "baseline", "gain")}))
    if given.json:
        given.json.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
