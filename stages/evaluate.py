"""Evaluate: measure the target before training (`base`) or one variant after it, on the same items.

In: models/pretrained/<target>, models/tuned/<variant>, data/domain/test.parquet, data/heldout.parquet; for suite local
and for domain sets the files that data/suite.json names.
Out: metrics/eval/<variant>.json (flat), data/samples/<variant>.parquet (one row an item).
Run: python -m stages.evaluate <base|variant>
"""

import sys

from anamnesis import evaluation, measuring, records
from anamnesis import params as settings
from anamnesis.errors import UserError, run


def main() -> None:
    """Measure the model named on the command line and write its metrics and samples."""
    params = settings.load()
    if len(sys.argv) != 2 or sys.argv[1] not in ("base", *params.variants):
        raise UserError(f"usage: python -m stages.evaluate base|<variant>; variants: {', '.join(params.variants)}")
    variant = sys.argv[1]
    base_dir = f"models/pretrained/{params.target}"
    model_dir = base_dir if variant == "base" else f"models/tuned/{variant}"
    samples, provenance = measuring.measure(params, variant, base_dir, model_dir)
    records.write(f"data/samples/{variant}.parquet", samples, records.SAMPLES, ["measure", "item_id"])
    records.write_metrics(f"metrics/eval/{variant}.json", {**evaluation.summary(samples), **provenance})


if __name__ == "__main__":
    run(main)
