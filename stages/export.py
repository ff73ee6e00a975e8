"""Export: every variant's training set for other trainers and for the hub. No stage of DVC.

In: params.yaml, dvc.lock, data/mixed/<variant>.parquet, models/pretrained/<model>/model.json (`dvc repro mix`).
Out: exports/<variant>/: messages.jsonl, dataset_info.json, axolotl.yaml, params.yaml, README.md.
Run: python -m stages.export [variant ...]      or: make export
"""

import argparse
from pathlib import Path

from anamnesis import lockfile, publishing, records
from anamnesis import params as settings
from anamnesis.cards import load_card
from anamnesis.errors import UserError, run


def check_fresh() -> None:
    """Raise `UserError` where params.yaml is not what data/mixed was made with: the card would say what isn't so."""
    stages = settings.read("dvc.lock").get("stages", {}) if Path("dvc.lock").is_file() else {}
    if "mix" not in stages:
        raise UserError("dvc.lock: doesn't say what data/mixed was made with; run `dvc repro mix`")
    if (what := lockfile.changed(stages, "mix", settings.read("params.yaml"))) is not None:
        raise UserError(f"{what}: changed since data/mixed was made; run `dvc repro mix` first, or put it back")


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Write variants' training sets for LLaMA-Factory, axolotl and the hub."
    )
    parser.add_argument("variants", nargs="*", help="all of them, where none is named")
    asked = parser.parse_args().variants
    params = settings.load()
    for name in asked:
        if name not in params.tuned_variants():
            raise UserError(f"{name}: no such variant; known: {', '.join(params.tuned_variants())}")
    check_fresh()
    folders = {key: Path("models/pretrained") / key for key in params.models}
    cards = {key: load_card(folder) for key, folder in folders.items() if (folder / "model.json").is_file()}
    for name in asked or params.tuned_variants():
        mixed = records.read(f"data/mixed/{name}.parquet", records.MIXED)
        for file, text in publishing.files(name, mixed, params, cards).items():
            records.write_text(f"exports/{name}/{file}", text)
        print(f"export {name}: {len(mixed)} rows in exports/{name}/")


if __name__ == "__main__":
    run(main)
