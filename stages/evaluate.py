"""Evaluate: measure the target before training (`base`) or one variant after it, on the same items.

In: models/pretrained/<target>, models/tuned/<variant>, data/domain/test.parquet, data/heldout.parquet.
Out: metrics/eval/<variant>.json (flat), data/samples/<variant>.parquet (one row an item).
Run: python -m stages.evaluate <base|variant>
"""

import sys

from anamnesis import evaluation, records
from anamnesis import params as settings
from anamnesis.errors import UserError, run


def main() -> None:
    """Measure the model named on the command line and write its metrics and samples."""
    params = settings.load()
    if len(sys.argv) != 2 or sys.argv[1] not in ("base", *params.variants):
        raise UserError(f"usage: python -m stages.evaluate base|<variant>; variants: {', '.join(params.variants)}")
    variant = sys.argv[1]
    base_dir = f"models/pretrained/{params.target}"
    trusted = params.models[params.target].trust_remote_code
    suite = evaluation.suite(
        records.read("data/domain/test.parquet", records.DOMAIN_TEST),
        records.read("data/heldout.parquet", records.HELDOUT),
        params.evaluate,
        params.seed,
    )

    evaluation.be_quiet()
    label = f"evaluate {variant}: "
    tokenizer = evaluation.load_tokenizer(base_dir, trusted)
    model = evaluation.load_model(base_dir if variant == "base" else f"models/tuned/{variant}", trusted)
    samples = evaluation.answer(model, tokenizer, suite.tasks, params.evaluate, label)
    for measure, texts in suite.texts.items():
        reference = None
        if measure == "own_text" and variant != "base":
            reference = evaluation.load_model(base_dir, trusted)  # for KL(base || tuned)
        samples += evaluation.read(model, tokenizer, measure, texts, params.evaluate, reference, label)

    records.write(f"data/samples/{variant}.parquet", samples, records.SAMPLES, ["measure", "item_id"])
    records.write_metrics(f"metrics/eval/{variant}.json", evaluation.summary(samples))


if __name__ == "__main__":
    run(main)
