"""Check: params.yaml and the files, packages and licences it names, before anything runs. No stage of DVC.

Run: python -m stages.check      (`make repro` calls it first)
"""

from anamnesis import foresight
from anamnesis import params as settings
from anamnesis.errors import run


def main() -> None:
    foresight.check(settings.load())


if __name__ == "__main__":
    run(main)
