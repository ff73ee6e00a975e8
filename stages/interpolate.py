"""Interpolate: weights between base and a variant, without training.

In: models/pretrained/<target>, models/tuned/<variant>.
Out: models/interpolated/<name>/ (weights, tokenizer, interpolation.json).
Run: python -m stages.interpolate <name>
"""

import sys

from anamnesis import interpolation
from anamnesis import params as settings
from anamnesis.errors import UserError, run


def main() -> None:
    params = settings.load()
    if len(sys.argv) != 2 or sys.argv[1] not in params.interpolations:
        known = ", ".join(params.interpolations) or "none"
        raise UserError(f"python -m stages.interpolate <name>; interpolations: {known}")
    name = sys.argv[1]
    wanted = params.interpolations[name]
    base_dir, tuned_dir = f"models/pretrained/{params.target}", f"models/tuned/{wanted.variant}"
    interpolation.write(base_dir, tuned_dir, f"models/interpolated/{name}", wanted)


if __name__ == "__main__":
    run(main)
