"""Whether training fits into the memory there is, before it is tried, and which nearest settings do.

In: what anamnesis/footprint.py counts for a process, and what devices and machines have. Out: a verdict, a table.
`check` is what stage train calls before it loads anything.
Run: python -m anamnesis.memory --config models/pretrained/smollm2 --devices 8 --device-gib 80 --host-gib 1000
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from anamnesis import hardware
from anamnesis.errors import UserError, run
from anamnesis.footprint import OFFLOADS, Estimate, Shape, estimate, is_possible, shape_of, stage_of
from anamnesis.progress import say
from anamnesis.ranks import Ranks, local_world
from anamnesis.sections import Train
from anamnesis.variants import Lora, Method, Tuning

GIB = 2**30
HEADROOM = 0.9  # of a device, which advice fills at most: an estimate is no measurement
MOST_PROCESSES = 4096
COLUMNS = ("weights", "gradients", "optimizer", "activations", "buffers")


@dataclass(frozen=True)
class Machines:
    """Where it runs: `processes` a machine, on GPUs of `device` bytes or on its processor (0), and its own memory."""

    host: int
    processes: int
    device: int = 0


def config_of(zero: int) -> dict[str, Any]:
    """DeepSpeed's settings of a stage; none where the folder is not there."""
    try:
        return json.loads((Path("conf/deepspeed") / f"zero{zero}.json").read_text(encoding="utf-8"))
    except OSError:
        return {}


@dataclass(frozen=True)
class Case:
    """A model, how it is tuned, and where: what is asked about with one `settings` or another."""

    shape: Shape
    method: Method
    machines: Machines

    def estimate(self, settings: Train, world: int) -> Estimate:
        """Bytes of one of `world` processes."""
        config = config_of(stage_of(settings))
        return estimate(self.shape, settings, self.method, world, config, self.machines.device > 0)

    def local(self, world: int) -> int:
        """Those of `world` processes that share a machine."""
        return min(world, self.machines.processes)

    def missing(self, found: Estimate, world: int) -> int:
        """Bytes that the device, or the machine, has too few; 0 or less: it fits."""
        if not self.machines.device:
            return found.total * self.local(world) - self.machines.host
        return max(found.total - self.machines.device, found.host(self.local(world)) - self.machines.host)

    def refused(self, found: Estimate, world: int) -> bool:
        """Whether weights, gradients and optimiser states alone are more than there is."""
        if not self.machines.device:
            return found.sure * self.local(world) > self.machines.host
        return found.sure > self.machines.device or found.offloaded * self.local(world) > self.machines.host

    def fits(self, settings: Train, world: int) -> bool:
        """Whether the whole of it fits, with room for what no estimate sees."""
        here = self.machines
        roomy = Machines(int(HEADROOM * here.host), here.processes, int(HEADROOM * here.device))
        return Case(self.shape, self.method, roomy).missing(self.estimate(settings, world), world) <= 0

    def changes(self, settings: Train, world: int) -> Iterator[tuple[Train, int]]:
        """Settings and processes, each with one change more, the cheap ones first; the global batch stays."""
        on_gpu, tried = self.machines.device > 0, settings
        updates: list[dict[str, Any]] = [{}, {"activation_checkpointing": True}, {"micro_batch": 1}]
        updates += [{"zero": zero} for zero in range(settings.zero + 1, 4)]
        if on_gpu:
            updates += [{"offload": kind} for kind in OFFLOADS[OFFLOADS.index(settings.offload) + 1 :]]
        for update in updates:
            tried = tried.model_copy(update=update)
            if is_possible(tried):
                yield tried, world
        if not on_gpu:  # they share one memory
            fewer = (count for count in range(world - 1, 0, -1) if world % count == 0)
            yield from ((settings, processes) for processes in fewer)
            return
        more = range(world + 1, min(settings.global_batch, MOST_PROCESSES) + 1)
        for processes in more:
            if settings.global_batch % processes == 0:
                for kind in OFFLOADS[OFFLOADS.index(settings.offload) :]:
                    yield tried.model_copy(update={"offload": kind}), processes

    def nearest(self, settings: Train, world: int) -> tuple[Train, int] | None:
        """The first settings and number of processes that fit, without changes they can do without; None: none do."""
        for found, processes in self.changes(settings, world):
            if self.fits(found, processes):
                break
        else:
            return None
        for key in ("activation_checkpointing", "micro_batch", "zero", "offload"):
            was, now = getattr(settings, key), getattr(found, key)
            for value in range(was, now) if key == "zero" else [was]:
                less = found.model_copy(update={key: value})
                if is_possible(less) and self.fits(less, processes):
                    found = less
                    break
        return found, processes


def differences(settings: Train, world: int, found: Train, processes: int) -> str:
    """What to write in params.yaml to come from one to the other, in one line."""
    keys = ("activation_checkpointing", "micro_batch", "zero", "offload")
    changed = {key: getattr(found, key) for key in keys if getattr(found, key) != getattr(settings, key)}
    if processes != world:
        changed["processes"] = processes
    return ", ".join(f"train.{key}: {str(value).lower()}" for key, value in changed.items())


def gib(size: float) -> str:
    """Bytes in GiB, three digits or so."""
    return (
        f"{size / GIB:.0f}" if size >= 100 * GIB else f"{size / GIB:.1f}" if size >= 10 * GIB else f"{size / GIB:.2f}"
    )


def verdict(case: Case, settings: Train, world: int) -> tuple[Literal["fits", "tight", "refused"], str]:
    """Whether it fits, and a line that says why not and what does; the line is empty where it does.

    Refused: weights, gradients and optimiser states alone do not fit. Tight: they do, but the sum does not.
    """
    found, local, here = case.estimate(settings, world), case.local(world), case.machines
    if case.missing(found, world) <= 0:
        return "fits", ""
    refused = case.refused(found, world)
    device = found.sure if refused else found.total
    host = found.offloaded * local if refused else found.host(local)
    what = "weights, gradients and optimiser states take" if refused else "with activations and buffers it may take"
    if not here.device:
        told = f"{what} {gib(device * local)} GiB and the machine has {gib(here.host)}"
    elif device > here.device:
        told = f"{what} {gib(device)} GiB a process and a GPU has {gib(here.device)}"
    else:
        told = f"{what} {gib(host)} GiB of a machine's own memory, which has {gib(here.host)}"
    if nearest := case.nearest(settings, world):
        told += f"; what fits: {differences(settings, world, *nearest)}"
    else:
        tries = [(case.estimate(tried, processes), processes) for tried, processes in case.changes(settings, world)]
        short = max(0, min(case.missing(tried, processes) for tried, processes in tries))
        devices = "more or larger devices" if here.device else "a larger machine"
        advice = devices if isinstance(case.method, Lora) else f"tuning: lora, or {devices}"
        told += f"; no setting of train gives room enough, {gib(short)} GiB are missing at best: take {advice}"
    return ("refused" if refused else "tight"), told


def machines_here(world: int) -> Machines:
    """This machine under `world` processes, or those of them that its launcher starts on it."""
    local = local_world(world)
    gpus = hardware.gpu_memory()
    return Machines(hardware.host_memory(), min(local, len(gpus)) if gpus else local, min(gpus, default=0))


def check(run: Any, ranks: Ranks) -> None:
    """Say that a run (anamnesis.training.Run) may not fit; raise `UserError` where it can't. Loads no weights.

    A model whose shape can't be read is left to what loads it.
    """
    try:
        shape = shape_of(run.model_dir, run.trust_remote_code)
    except UserError:
        return
    found, told = verdict(Case(shape, run.tuning, machines_here(ranks.world)), run.settings, ranks.world)
    if found == "refused":
        raise UserError(f"train {run.variant}: {told}")
    if told and ranks.rank == 0:
        say(f"train {run.variant}: {told}")


def plan(folder: Path, tunings: Mapping[str, Method], settings: Train, trust_remote_code: bool) -> list[dict[str, Any]]:
    """What training takes here, in bytes of a process: an entry for each method among the variants' `tunings`.

    `told` says why one does not fit and what does. Without the model's config there is one entry, which says that.
    """
    methods: dict[str, list[str]] = {}
    for name, method in tunings.items():
        methods.setdefault(method.model_dump_json(), []).append(name)
    try:
        shape = shape_of(folder, trust_remote_code)
    except UserError as error:
        return [{"variants": list(tunings), "told": str(error)}]
    machines, world = machines_here(settings.processes), settings.processes
    entries = []
    for names in methods.values():
        case = Case(shape, tunings[names[0]], machines)
        found = case.estimate(settings, world)
        kind, told = verdict(case, settings, world)
        of_process = asdict(found) | {"sum": found.total, "host": found.host(case.local(world))}
        ours = {"variants": names, "tuning": case.method.method, "verdict": kind, "told": told}
        entries.append(ours | of_process | {"machines": asdict(machines)})
    return entries


def show_plan(entries: Sequence[dict[str, Any]]) -> None:
    """Print the table of `plan`, and a line for what does not fit."""
    rows = []
    for one in entries:
        if here := one.get("machines"):
            device = f"GPU: {gib(here['device'])}" if here["device"] else f"{here['processes']} in {gib(here['host'])}"
            rows.append([one["tuning"], *(gib(one[key]) for key in (*COLUMNS, "sum")), device, one["verdict"]])
    if rows:
        print("\nMemory of training, in GiB a process:")
        show(["tuning", *COLUMNS, "sum", "here", "verdict"], rows, ["tuning", "here", "verdict"])
    for one in entries:
        if one["told"]:
            print(f"train {', '.join(one['variants'])}: {one['told']}")


def show(heads: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[str]) -> None:
    """Print a table; the columns named `left` are text, the others numbers, to the right."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for head in heads:
        table.add_column(head, justify="left" if head in left else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def rows_of(case: Case, settings: Train, world: int) -> Iterator[dict[str, Any]]:
    """An estimate for every stage and kind of offloading, as a plain dict; bf16 has no stage 0 of its own."""
    for zero in range(stage_of(settings.model_copy(update={"zero": 0})), 4):
        for offload in OFFLOADS if case.machines.device else OFFLOADS[:1]:
            tried = settings.model_copy(update={"zero": zero, "offload": offload})
            if is_possible(tried):
                found = case.estimate(tried, world)
                yield {
                    "zero": zero,
                    "offload": offload,
                    **asdict(found),
                    "sum": found.total,
                    "host": found.host(case.local(world)),
                    "verdict": verdict(case, tried, world)[0],
                }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m anamnesis.memory", description="What training takes in memory.")
    parser.add_argument("--config", type=Path, nargs="+", required=True, help="model folders, or config.json files")
    parser.add_argument("--devices", type=int, default=1, help="GPUs a machine; without --device-gib: its processes")
    parser.add_argument("--machines", type=int, default=1)
    parser.add_argument("--device-gib", type=float, default=0, help="of a GPU; without it: all runs on the processor")
    parser.add_argument("--host-gib", type=float, required=True, help="a machine's own memory")
    parser.add_argument("--tuning", choices=["full", "lora", "l2-sp", "kl"], default="full")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--micro-batch", type=int, default=1)
    parser.add_argument("--sequence-length", type=int, default=4096)
    parser.add_argument("--attention", choices=["sdpa", "flash_attention_2"], default="sdpa")
    parser.add_argument("--activation-checkpointing", action="store_true")
    parser.add_argument("--json", action="store_true", help="bytes, as one JSON object")
    told = parser.parse_args()
    world = told.devices * told.machines
    try:
        method = TypeAdapter(Tuning).validate_python(told.tuning)
        settings = Train(
            learning_rate=1e-4,
            global_batch=told.micro_batch * world,
            micro_batch=told.micro_batch,
            sequence_length=told.sequence_length,
            precision=told.precision,
            attention=told.attention,
            activation_checkpointing=told.activation_checkpointing,
            processes=world,
        )
    except ValidationError as error:
        raise UserError("; ".join(f"{one['loc'][0]}: {one['msg']}" for one in error.errors())) from None
    machines = Machines(int(told.host_gib * GIB), told.devices, int(told.device_gib * GIB))
    result = []
    for config in told.config:
        case = Case(shape_of(config), method, machines)
        name = config.stem if config.suffix == ".json" else config.name
        rows = list(rows_of(case, settings, world))
        result.append({"model": name, "parameters": case.shape.weights, "world": world, "rows": rows})
    if told.json:
        print(json.dumps(result))
        return
    heads = ["model", "ZeRO", "offload", *COLUMNS, "sum", *(["host"] if machines.device else []), "verdict"]
    lines = [
        [
            one["model"], str(row["zero"]), row["offload"], *(gib(row[key]) for key in (*COLUMNS, "sum")),
            *([gib(row["host"])] if machines.device else []), row["verdict"],
        ]
        for one in result for row in one["rows"]
    ]  # fmt: skip
    show(heads, lines, ["model", "offload", "verdict"])
    print(
        "GiB of one process at a step's greatest moment; tight: the sure parts fit, the sum may not (docs/training.md)"
    )


if __name__ == "__main__":
    run(main)
