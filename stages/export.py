"""Export: every variant's training set for other trainers and for the hub, or its model for the hub. No stage of DVC.

In: params.yaml, dvc.lock, data/mixed/<variant>.parquet, models/pretrained/<model>/model.json (`dvc repro mix`);
with --models models/tuned/<variant>/, metrics/summary.json (`dvc repro`).
Out: exports/<variant>/: messages.jsonl, dataset_info.json, axolotl.yaml, params.yaml, README.md;
with --models exports/<variant>-model/: the tuned model's files, and its card with what the report measured.
Run: python -m stages.export [--models] [variant ...]      or: make export
"""

import argparse
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from anamnesis import lockfile, measures, modelcard, publishing, records
from anamnesis import params as settings
from anamnesis.cards import load_card
from anamnesis.errors import UserError, run
from anamnesis.params import Params


def check_fresh(stage: str, what: str, how: str) -> None:
    """Raise `UserError` where params.yaml is not what `stage` made `what` with: the card would say what isn't so."""
    stages = settings.read("dvc.lock").get("stages", {}) if Path("dvc.lock").is_file() else {}
    if stage not in stages:
        raise UserError(f"dvc.lock: doesn't say what {what} was made with; run `{how}`")
    if (changed := lockfile.changed(stages, stage, settings.read("params.yaml"))) is not None:
        raise UserError(f"{changed}: changed since {what} was made; run `{how}` first, or put it back")


def export_rows(name: str, params: Params) -> None:
    """Write exports/<name>/."""
    folders = {key: Path("models/pretrained") / key for key in params.models}
    cards = {key: load_card(folder) for key, folder in folders.items() if (folder / "model.json").is_file()}
    mixed = records.read(f"data/mixed/{name}.parquet", records.MIXED)
    for file, text in publishing.files(name, mixed, params, cards).items():
        records.write_text(f"exports/{name}/{file}", text)
    print(f"export {name}: {len(mixed)} rows in exports/{name}/")


def export_model(name: str, params: Params, summary: Mapping[str, float]) -> None:
    """Write exports/<name>-model/ in one move; weights are not written again where a hard link will do."""
    tuned, out = Path("models/tuned") / name, Path("exports") / f"{name}-model"
    if not (tuned / modelcard.FILE).is_file():
        raise UserError(f"{tuned}/{modelcard.FILE}: not found; run `dvc repro`")
    if out.name in params.tuned_variants():
        raise UserError(f"variants.{out.name}: its training set is exported to {out}; give it another name")
    results = [
        {
            "measure": measure,
            "label": measures.spec(measure).label,
            "unit": measures.spec(measure).unit,
            "higher_is_better": measures.spec(measure).higher_is_better,
            "base": summary.get(f"base.{measure}"),
            "tuned": summary[f"{name}.{measure}"],
            **{key: summary.get(f"{name}.{measure}.{key}") for key in ("n", "diff", "low", "high")},
        }
        for measure in measures.ordered(key.removeprefix(f"{name}.") for key in summary if _is_value(key, name))
    ]
    if not results:
        raise UserError(f"metrics/summary.json: has no measure of {name}; run `dvc repro`")
    card = (tuned / modelcard.FILE).read_text(encoding="utf-8")
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for file in sorted(tuned.iterdir()):
        _bring(file.resolve(), partial / file.name)
    records.write_text(partial / modelcard.FILE, modelcard.with_evaluation(card, name, results, params.clean.languages))
    shutil.rmtree(out, ignore_errors=True)
    os.replace(partial, out)
    print(f"export {name}: the model, with {len(results)} measures in its card, in {out}/")


def _is_value(key: str, name: str) -> bool:
    """Whether a key of metrics/summary.json is <name>.<measure>, and not one of the numbers below it."""
    return key.startswith(f"{name}.") and key.count(".") == 1


def _read_summary(path: str) -> dict[str, float]:
    try:
        return dict(json.loads(Path(path).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        raise UserError(f"{path}: not found, or not what stage report writes; run `dvc repro`") from None


def _bring(file: Path, to: Path) -> None:
    """A hard link to weights, which nobody edits, where the file system has them; a copy of anything else."""
    if file.suffix == ".safetensors":
        try:
            os.link(file, to)
            return
        except OSError:
            pass
    shutil.copyfile(file, to)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Write variants' training sets for LLaMA-Factory, axolotl and the hub, or their models for the hub."
    )
    parser.add_argument("--models", action="store_true", help="the models, with the report's measures in their cards")
    parser.add_argument("variants", nargs="*", help="all of them, where none is named")
    arguments = parser.parse_args()
    params = settings.load()
    known = params.tuned_variants()
    for name in arguments.variants:
        if name not in known:
            raise UserError(f"{name}: no such variant; known: {', '.join(known)}")
    names = arguments.variants or list(known)
    if arguments.models:
        check_fresh("report", "metrics/summary.json", "dvc repro")
        summary = _read_summary("metrics/summary.json")
        for name in names:
            export_model(name, params, summary)
        return
    check_fresh("mix", "data/mixed", "dvc repro mix")
    for name in names:
        export_rows(name, params)


if __name__ == "__main__":
    run(main)
