"""Evaluate: measure the target before training (`base`) or one model made of it, on the same items.

In: models/pretrained/<target>, models/tuned/<variant>, models/interpolated/<name> or models/reseeded/<variant>-<seed>;
data/domain/test.parquet, data/heldout.parquet; for suite local and for domain sets the files of data/suite.json.
Out: metrics/eval/<name>.json (flat), data/samples/<name>.parquet (one row an item); of a further seed
metrics/reseeded/<variant>-<seed>.json, data/reseeded/<variant>-<seed>.parquet.
Run: python -m stages.evaluate <base|variant|interpolation>, or <variant> <seed>
"""

import sys

from anamnesis import evaluation, measuring, records
from anamnesis import params as settings
from anamnesis.errors import run
from anamnesis.params import Params


def chosen(params: Params, arguments: list[str]) -> tuple[str, str, str, str]:
    """What the command line names: a word for it, its weights, and where its samples and its metrics go.

    Raises `UserError` for what params don't have.
    """
    name, seed = params.named("stages.evaluate", arguments, params.evaluated())
    if seed is not None:
        weights, samples = f"models/reseeded/{name}-{seed}", f"data/reseeded/{name}-{seed}.parquet"
        return f"{name}-{seed}", weights, samples, f"metrics/reseeded/{name}-{seed}.json"
    weights = f"models/tuned/{name}"
    if name == "base":
        weights = f"models/pretrained/{params.target}"
    elif name in params.interpolations:
        weights = f"models/interpolated/{name}"
    return name, weights, f"data/samples/{name}.parquet", f"metrics/eval/{name}.json"


def main() -> None:
    """Measure the model named on the command line and write its metrics and samples."""
    params = settings.load()
    name, weights, samples_path, metrics_path = chosen(params, sys.argv[1:])
    base_dir = f"models/pretrained/{params.target}"
    samples, provenance = measuring.measure(params, name, base_dir, weights)
    records.write(samples_path, samples, records.SAMPLES, ["measure", "item_id"])
    records.write_metrics(metrics_path, {**evaluation.summary(samples), **provenance})


if __name__ == "__main__":
    run(main)
