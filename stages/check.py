"""Check: params.yaml and the files, packages and licences it names, before anything runs. No stage of DVC.

Of suite local's files every row is read as well, and what IFEval's and IFBench's checkers need is looked for.

Run: python -m stages.check      (`make repro` calls it first)
"""

from anamnesis import evaluation, foresight, measuring, ranks, trackers
from anamnesis import params as settings
from anamnesis.errors import run


def main() -> None:
    params = settings.load()
    foresight.check(params)
    trackers.check(params.train.trackers)
    ranks.hosts_of(params.train)
    evaluation.be_quiet()
    measuring.local_rows(params.evaluate, params.seed)


if __name__ == "__main__":
    run(main)
