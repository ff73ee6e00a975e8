"""Rehearse: draw rows from the sources that variants name: public sets, files of yours. Asks no model.

In: what rehearsal.sources and the registry name (the hub, files); nothing where no variant names a source.
Out: data/rehearsal/<source>.parquet, data/rehearsal/sources.json (what was read: commits, hashes, licences),
data/borrowed.parquet (instructions that the committee answers besides the probed ones), metrics/rehearsal.json.
Run: python -m stages.rehearse
"""

import json
from pathlib import Path
from typing import Any

from anamnesis import params as settings
from anamnesis import records, rehearsal
from anamnesis.drawing import reasons_of
from anamnesis.errors import run
from anamnesis.own import note_unwatched


def main() -> None:
    params = settings.load()
    Path("data/rehearsal").mkdir(parents=True, exist_ok=True)  # also where no variant names a source
    drawn: dict[str, list[dict[str, Any]]] = {}
    read: dict[str, dict[str, Any]] = {}
    metrics: dict[str, int] = {"sources": len(params.rehearsal_sources())}
    for name in params.rehearsal_sources():
        place, read[name] = rehearsal.resolve(rehearsal.place_of(name, params.rehearsal))
        if place.uri.startswith("path:"):
            note_unwatched(Path(place.uri.removeprefix("path:")), "rehearse")
        rows = rehearsal.draw(place, params.rehearsal, rehearsal.wanted_of(params, name), params.seed)
        records.write(f"data/rehearsal/{name}.parquet", rows, records.REHEARSAL, ["row_id"])
        drawn[name] = rows
        counts = {"rows": sum(row["status"] == "ok" for row in rows)}
        dropped = sorted(reasons_of(rows).items())
        counts |= {f"dropped.{reason.replace(' ', '_')}": number for reason, number in dropped}
        metrics |= {f"{name}.{key}": count for key, count in counts.items()}
        print(f"rehearse {name}: " + ", ".join(f"{key} {count}" for key, count in counts.items()))
    borrowed = rehearsal.borrowed_of(params, drawn)
    metrics["borrowed"] = len(borrowed)
    records.write("data/borrowed.parquet", borrowed, records.BORROWED, ["source", "instruction_id"])
    records.write_text("data/rehearsal/sources.json", json.dumps(read, indent=2, ensure_ascii=False) + "\n")
    records.write_metrics("metrics/rehearsal.json", metrics)


if __name__ == "__main__":
    run(main)
