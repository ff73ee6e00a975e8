"""Optimiser steps without a stage: each of some settings on a model, in this process or, under a launcher, in two.

Run: python steps.py '[model, rows, [[tuning, settings of section train], …]]'; prints one JSON object for each.
"""

import json
import sys
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from anamnesis import export, ranks, training, trainset, tuning
from anamnesis.sections import Train
from anamnesis.variants import Lora, Tuning


def steps(joined: ranks.Ranks, model: Path, rows: list[dict[str, Any]], method: Any, config: Any) -> dict[str, Any]:
    """The curve, the kind of DeepSpeed's optimiser, and of each weight it ends with the norm and a sum of waves.

    The sum weighs every number of a tensor otherwise, and so sees a change that leaves the norm as it was.
    """
    import torch
    from transformers import AutoTokenizer

    method = TypeAdapter(Tuning).validate_python(method)
    settings = Train(**({"learning_rate": 1e-3, "sequence_length": 128} | config))
    conf = json.loads(Path(f"conf/deepspeed/zero{settings.zero}.json").read_text(encoding="utf-8"))
    examples, _ = trainset.encode_rows(AutoTokenizer.from_pretrained(model), rows, settings.sequence_length)
    sequences = trainset.sequences_of(examples, settings)
    run = training.Run("x", settings, 1, rows, model, "w", False, conf, Path("t"), Path("c"), Path("k"), method)
    engine = training.make_engine(run, joined.world, joined.device)
    reference = training.make_reference(run, joined.world, joined.device)
    curve = []
    for step, numbers in enumerate(trainset.batches_of(len(sequences), settings, 1)):
        batch = [[examples[index] for index in sequences[sequence]] for sequence in numbers]
        curve.append(training.optimiser_step(engine, run, joined, batch, step, 20, 2, reference))
    weights = export.master_weights(engine, joined.rank)
    if isinstance(method, Lora) and joined.rank == 0:
        weights = tuning.merged(weights, method)
    sums = {}
    for name, weight in sorted(weights.items()):
        flat = weight.double().flatten()
        sums[name] = [float(flat.norm()), float(flat @ torch.arange(len(flat)).double().cos())]
    found = {"optimizer": type(engine.optimizer).__name__, "weights": sums, "curve": curve}
    engine.destroy()
    return found


def main() -> None:
    model, rows, configs = json.loads(sys.argv[1])
    with ranks.process_group() as joined:
        import deepspeed

        assert deepspeed.comm.comm.cdb.shm_comm_op is None
        results = [steps(joined, Path(model), rows, method, config) for method, config in configs]
        if joined.rank == 0:
            print(json.dumps(results))


if __name__ == "__main__":
    main()
