"""Memory of training: parameters and bytes that are counted exactly, verdicts, and advice that does fit."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as example_settings
from hypothesis import strategies as st

from anamnesis import hardware, memory, records
from anamnesis.footprint import (
    Shape,
    activation_bytes,
    deepspeed_says,
    estimate,
    is_possible,
    layer_bytes,
    shape_of,
    states_of,
)
from anamnesis.memory import GIB, Case, Machines, differences, verdict
from anamnesis.sections import Train
from anamnesis.variants import FULL, KL, L2SP, Lora, Method

ROOT = Path(__file__).resolve().parent.parent
PARAMETERS = {"135m": 134_515_008, "1b": 1_235_814_400, "8b": 8_030_261_248, "70b": 70_553_706_496}
MILLION = Shape(  # of weights, so that bytes are bytes a weight times a million
    weights=10**6,
    largest=10**5,
    linear=(("up", 100, 200), ("down", 200, 100)),
    layers=2,
    hidden=100,
    query=100,
    key=50,
    heads=10,
    inner=200,
    vocabulary=1000,
)


def train(**changes: Any) -> Train:
    return Train(**({"learning_rate": 1e-4, "global_batch": 64, "sequence_length": 4096} | changes))


def shape(size: str) -> Shape:
    return shape_of(ROOT / f"conf/shapes/{size}.json")


# --- shapes ---


@pytest.mark.parametrize("size", PARAMETERS)
def test_parameters_are_counted_exactly(size: str) -> None:
    assert shape(size).weights == PARAMETERS[size]


def test_the_shape_of_a_folder_is_the_models(small_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(small_model)
    found = shape_of(small_model)
    assert found.weights == model.num_parameters()
    assert found.largest == model.get_input_embeddings().weight.numel()
    assert (found.layers, found.hidden, found.query, found.key, found.heads, found.inner) == (2, 32, 32, 16, 4, 64)


@pytest.mark.parametrize("targets", [None, ["q_proj", "down_proj"]])
def test_adapters_are_counted_as_peft_makes_them(small_model: Path, targets: list[str] | None) -> None:
    from transformers import AutoModelForCausalLM

    from anamnesis import tuning

    model = AutoModelForCausalLM.from_pretrained(small_model)
    lora = Lora(rank=4, targets=targets)
    tuning.adapt(model, lora, 1)
    adapters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert shape_of(small_model).trained(lora) == adapters > 0


def test_what_is_no_model_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(memory.UserError, match=r"config\.json: not found; run `dvc repro models`"):
        shape_of(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "no-such-thing"}')
    with pytest.raises(memory.UserError, match=r"config\.json: no shape of a language model: "):
        shape_of(tmp_path)


# --- bytes a weight ---

STATES = [  # precision, stage, offload, ranks -> bytes a weight: weights, gradients, optimiser, offloaded
    ("fp32", 0, "none", 1, (4, 4, 8, 0)),
    ("fp32", 0, "none", 4, (4, 4, 8, 0)),
    ("fp32", 1, "none", 4, (4, 4, 3, 0)),
    ("fp32", 2, "none", 4, (4, 1, 3, 0)),
    ("fp32", 3, "none", 4, (1, 1, 3, 0)),
    ("bf16", 0, "none", 1, (2, 6, 12, 0)),  # runs as stage 1
    ("bf16", 1, "none", 4, (2, 6, 3, 0)),
    ("bf16", 2, "none", 1, (2, 4, 12, 0)),
    ("bf16", 2, "none", 4, (2, 1, 3, 0)),
    ("bf16", 3, "none", 1, (2, 4, 12, 0)),
    ("bf16", 3, "none", 4, (0.5, 1, 3, 0)),
    ("bf16", 1, "optimizer", 2, (2, 6, 0, 9)),
    ("fp32", 1, "optimizer", 2, (4, 4, 0, 10)),
    ("bf16", 2, "optimizer", 2, (2, 2, 0, 9)),
    ("fp32", 2, "optimizer", 2, (4, 0, 0, 12)),
    ("bf16", 2, "optimizer", 8, (2, 0.5, 0, 2.25)),
    ("bf16", 3, "optimizer", 2, (1, 0, 0, 10)),
    ("fp32", 3, "optimizer", 2, (2, 0, 0, 10)),
    ("bf16", 3, "all", 2, (0, 0, 0, 11)),
    ("fp32", 3, "all", 2, (0, 0, 0, 12)),
]


@pytest.mark.parametrize(("precision", "zero", "offload", "world", "wanted"), STATES)
def test_bytes_a_weight(precision: str, zero: int, offload: str, world: int, wanted: tuple[float, ...]) -> None:
    found = states_of(MILLION, train(precision=precision, zero=zero, offload=offload), FULL, world)
    assert tuple(part / 10**6 for part in (found.weights, found.gradients, found.optimizer, found.host)) == wanted


@pytest.mark.parametrize("world", [1, 8, 16])
def test_stages_2_and_3_are_deepspeeds_estimate_but_for_what_is_named(world: int) -> None:
    weights = PARAMETERS["8b"]
    two, three = (states_of(shape("8b"), train(zero=zero), FULL, world) for zero in (2, 3))
    device = deepspeed_says(weights, train(zero=2), world)[0]
    assert two.weights + two.gradients + two.optimizer == pytest.approx(device - 2 * weights / world, abs=world)
    device = deepspeed_says(weights, train(zero=3), world)[0]
    assert three.weights + three.gradients + three.optimizer == pytest.approx(device, abs=world)
    hosts = deepspeed_says(weights, train(zero=3, offload="all"), world)[1]
    assert hosts == 18 * weights
    offloaded = states_of(shape("8b"), train(zero=3, offload="all"), FULL, world)
    assert offloaded.host * world == pytest.approx(hosts + 4 * weights, abs=world)


def test_what_tuning_adds_and_takes_away() -> None:
    lora = Lora(rank=1)  # 600 weights in two adapters
    found = states_of(MILLION, train(zero=2), lora, 1)
    assert (found.weights, found.gradients, found.optimizer) == (2 * 10**6 + 1200, 2400, 7200)
    assert states_of(MILLION, train(zero=3), lora, 4).weights == 2 * 10**6 // 4 + 300
    full, pulled, held = (states_of(MILLION, train(zero=3), method, 4) for method in (FULL, L2SP(), KL()))
    assert pulled.optimizer - full.optimizer == 10**6  # 4 bytes, divided by 4
    assert held.weights - full.weights == 2 * 10**6 // 4


COUNT = """
import gc, json, sys
from array import array
from pathlib import Path
from anamnesis import chat, footprint, ranks, training
from anamnesis.sections import Train

def main():
    model, settings = json.loads(sys.argv[1])
    settings = Train(learning_rate=1e-3, sequence_length=32, global_batch=2, **settings)
    conf = json.loads(Path(f"conf/deepspeed/zero{settings.zero}.json").read_text())
    buckets = {name: 1000 for name in conf["zero_optimization"] if name.endswith("bucket_size")}
    conf["zero_optimization"] |= buckets
    run = training.Run("x", settings, 1, [], Path(model), "w", False, conf, Path("t"), Path("c"), Path("k"))
    batch = [[chat.Encoded(array("i", range(8)), bytes([0] + [1] * 7))]] * 2
    with ranks.process_group() as joined:
        import torch
        engine = training.make_engine(run, joined.world, joined.device)
        for step in range(2):
            take, held = engine.step, []
            def count_and_take():
                gc.collect()
                tensors = [one for one in gc.get_objects() if isinstance(one, torch.Tensor) and not one.is_meta]
                tensors += [one.grad for one in tensors if one.is_leaf and one.grad is not None]
                storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}
                held.append(sum(storages.values()))
                take()
            engine.step = count_and_take
            training.optimiser_step(engine, run, joined, batch, step, 2, 0)
            engine.step = take
        print(json.dumps(held[-1]))

main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"zero": 0, "precision": "fp32"},
        {"zero": 1, "precision": "fp32"},
        {"zero": 3, "precision": "fp32"},
        {"zero": 1, "precision": "bf16"},
        {"zero": 2, "precision": "bf16"},
        {"zero": 3, "precision": "bf16"},
    ],
)
def test_an_engine_holds_what_is_counted(changes: dict[str, Any], tmp_path: Path) -> None:
    """All tensors of a process before the second step of a real engine: within 3 % of the three sure parts."""
    config = json.loads((ROOT / "conf/shapes/135m.json").read_text())
    small = {"hidden_size": 128, "intermediate_size": 344, "num_attention_heads": 4, "num_key_value_heads": 2}
    from transformers import AutoModelForCausalLM, LlamaConfig

    model = AutoModelForCausalLM.from_config(
        LlamaConfig(**(config | small | {"num_hidden_layers": 4, "vocab_size": 512}))
    )
    model.save_pretrained(tmp_path / "model")
    script = tmp_path / "count.py"
    script.write_text(COUNT, encoding="utf-8")
    task = json.dumps([str(tmp_path / "model"), changes])
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), task],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    held = json.loads(done.stdout.splitlines()[-1])
    found = estimate(shape_of(tmp_path / "model"), train(**changes), FULL, 1, {}, on_gpu=False)
    assert held == pytest.approx(found.sure, rel=0.03)


# --- activations ---


def test_a_layer_keeps_what_the_formula_says() -> None:
    """What autograd saves of a real layer, storage by storage, weights left out: to the byte."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    raw = json.loads((ROOT / "conf/shapes/135m.json").read_text())
    small = {"hidden_size": 96, "intermediate_size": 256, "num_attention_heads": 6, "num_key_value_heads": 2}
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        for layers in (2, 3):
            config = LlamaConfig(**(raw | small | {"num_hidden_layers": layers, "vocab_size": 64}))
            model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").to(dtype).train()
            weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
            for packed in (True, False):
                saved: dict[int, int] = {}

                def keep(tensor: Any, saved: dict[int, int] = saved, weights: set[int] = weights) -> Any:
                    storage = tensor.untyped_storage()
                    if storage.data_ptr() not in weights:
                        saved[storage.data_ptr()] = storage.nbytes()
                    return tensor

                positions = torch.arange(32).repeat(2)[None] if packed else torch.arange(64)[None]
                with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                    logits = model(
                        input_ids=torch.ones(1, 64, dtype=torch.long), position_ids=positions, use_cache=False
                    )
                found[dtype, packed, layers] = sum(saved.values())
                del logits
    shape = Shape(0, 0, (), 1, 96, 96, 32, 6, 256, 64)
    for dtype, precision in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        for packed in (True, False):
            one_more = found[dtype, packed, 3] - found[dtype, packed, 2]
            assert layer_bytes(shape, train(precision=precision, sequence_length=64), packed) == one_more


def test_activations_by_hand() -> None:
    """fp32, no mask: a layer 2 · (12 · 100 + 4) + 4 · 2 · 150 + 4 · 10 + 4 · 4 · 200 = 6848 bytes a token."""
    settings = train(precision="fp32", sequence_length=32, packing=False, global_batch=2)
    layer = 32 * 6848
    assert layer_bytes(MILLION, settings, False) == layer
    assert activation_bytes(MILLION, settings, FULL, False) == 2 * layer + 32 * (1200 + 12 * 1000)
    assert activation_bytes(MILLION, settings, KL(), False) == 2 * layer + 32 * (1200 + 40 * 1000)
    again = settings.model_copy(update={"activation_checkpointing": True})
    assert activation_bytes(MILLION, again, FULL, False) == 32 * (2 * 400 + 1200 + 12 * 1000)


@pytest.mark.parametrize(
    ("changes", "grows"),
    [
        ({"micro_batch": 2}, True),
        ({"sequence_length": 8192}, True),
        ({"activation_checkpointing": True}, False),
        ({"attention": "flash_attention_2"}, False),
    ],
)
def test_what_makes_activations_larger(changes: dict[str, Any], grows: bool) -> None:
    case = Case(shape("8b"), FULL, Machines(1000 * GIB, 8, 80 * GIB))
    before, after = (case.estimate(train(zero=3, **more), 8) for more in ({}, changes))
    assert (after.activations > before.activations) is grows
    assert after.sure == before.sure


# --- verdicts and advice ---


def test_70b_on_eight_gpus_is_refused_and_what_is_advised_fits() -> None:
    case = Case(shape("70b"), FULL, Machines(2000 * GIB, 8, 80 * GIB))
    settings = train(zero=3)
    kind, told = verdict(case, settings, 8)
    assert kind == "refused"
    assert told.startswith(
        "weights, gradients and optimiser states take 148 GiB a process and a GPU has 80.0; what fits: "
    )
    assert told.endswith("train.activation_checkpointing: true, train.offload: optimizer")
    advised = settings.model_copy(update={"activation_checkpointing": True, "offload": "optimizer"})
    assert verdict(case, advised, 8) == ("fits", "")
    poor = Case(case.shape, FULL, Machines(500 * GIB, 8, 80 * GIB))
    assert verdict(poor, settings, 8)[1].endswith("train.activation_checkpointing: true, train.processes: 32")
    kind, told = verdict(poor, train(zero=3, global_batch=8), 8)
    assert (kind, told.partition(" GiB are missing at best: ")[2]) == (
        "refused",
        "take tuning: lora, or more or larger devices",
    )


SIZES = {"135m": 134_515_008, "8b": 8_030_261_248, "70b": 70_553_706_496}
METHODS: list[Method] = [FULL, Lora(), L2SP(), KL()]


@given(
    size=st.sampled_from(list(SIZES)),
    method=st.sampled_from(METHODS),
    precision=st.sampled_from(["bf16", "fp32"]),
    zero=st.integers(0, 3),
    micro_batch=st.sampled_from([1, 2, 4]),
    length=st.sampled_from([256, 2048, 8192]),
    world=st.sampled_from([1, 2, 8]),
    device=st.sampled_from([0, 8, 24, 80]),
    host=st.sampled_from([16, 200, 3000]),
)
@example_settings(max_examples=200, deadline=None)
def test_what_is_advised_fits(
    size: str,
    method: Method,
    precision: str,
    zero: int,
    micro_batch: int,
    length: int,
    world: int,
    device: int,
    host: int,
) -> None:
    case = Case(KNOWN[size], method, Machines(host * GIB, world, device * GIB))
    settings = train(precision=precision, zero=zero, micro_batch=micro_batch, sequence_length=length)
    kind, told = verdict(case, settings, world)
    assert (kind == "fits") is (case.missing(case.estimate(settings, world), world) <= 0)
    if kind == "fits":
        return
    if (nearest := case.nearest(settings, world)) is None:
        assert "GiB are missing at best: take " in told
        return
    found, processes = nearest
    assert case.fits(found, processes)
    assert is_possible(found)
    assert settings.global_batch % (found.micro_batch * processes) == 0
    assert verdict(case, found, processes) == ("fits", "")
    changed = differences(settings, world, found, processes)
    assert changed
    assert told.endswith(f"; what fits: {changed}")
    for key in ("activation_checkpointing", "micro_batch", "offload"):  # none of them is for nothing
        if getattr(found, key) != getattr(settings, key):
            less = found.model_copy(update={key: getattr(settings, key)})
            assert not (is_possible(less) and case.fits(less, processes))


KNOWN: dict[str, Shape] = {}


@pytest.fixture(autouse=True, scope="module")
def _shapes() -> None:
    KNOWN.update({size: shape(size) for size in SIZES})


def test_processes_on_one_processor_share_its_memory() -> None:
    settings = train(precision="fp32", sequence_length=256)
    assert verdict(Case(shape("1b"), FULL, Machines(24 * GIB, 1)), settings, 1)[0] == "fits"
    kind, told = verdict(Case(shape("1b"), FULL, Machines(24 * GIB, 2)), settings, 2)
    assert kind == "refused"
    assert told.endswith("GiB and the machine has 24.0; what fits: train.processes: 1")


# --- what the machine has ---


@pytest.mark.parametrize(
    ("cgroup", "files", "wanted"),
    [
        ("0::/box/job\n", {"box/memory.max": "1000", "box/job/memory.max": "max"}, 1000),
        ("0::/box/job\n", {"box/memory.max": "1000", "box/job/memory.max": "500"}, 500),
        ("0::/\n", {"memory.max": "700"}, 700),
        ("5:cpu:/x\n4:memory:/job\n", {"memory/job/memory.limit_in_bytes": "800", "memory.max": "1"}, 800),
        ("0::/gone\n", {}, None),
        (None, {}, None),
    ],
)
def test_a_control_groups_limit_counts(
    cgroup: str | None, files: dict[str, str], wanted: int | None, tmp_path: Path
) -> None:
    if cgroup:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(cgroup)
    for name, text in files.items():
        file = tmp_path / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert hardware.host_memory(tmp_path) == (wanted or whole)


# --- the stage, the plan and the command ---

SMALLER = """
import sys
from anamnesis import hardware
from anamnesis.errors import run
from stages import train

has = int(sys.argv.pop())
hardware.host_memory = lambda: has
run(train.main)
"""


@pytest.mark.parametrize(
    ("has", "code", "line"),
    [
        (2 * 10**6, 2, "error: train committee: weights, gradients and optimiser states take "),
        (60 * 10**6, 3, "train committee: with activations and buffers it may take "),  # and goes on
    ],
)
def test_the_stage_refuses_before_anything_is_loaded(
    has: int, code: int, line: str, project: Callable[..., Path], default_params: dict[str, Any], small_model: Path
) -> None:
    """The folder holds neither weights nor a tokenizer: who goes on says so."""
    default_params["train"] |= {"sequence_length": 128, "precision": "fp32"}
    folder = project(default_params, smollm2=small_model)
    model = folder / "models/pretrained/smollm2"
    for file in model.iterdir():
        if file.name not in ("config.json", "model.json"):
            file.unlink()
    row = {
        "row_id": "r",
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        "source": "domain",
        "member": None,
        "licence": "none",
        "tokens": 0,
    }
    records.write(folder / "data/mixed/committee.parquet", [row], records.MIXED, ["row_id"])
    command = [sys.executable, "-c", SMALLER, "committee", str(has)]
    env = os.environ | {"PYTHONPATH": str(folder)}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    told = [one for one in done.stderr.splitlines() if "train committee" in one]
    assert [one[: len(line)] for one in told] == [line], done.stderr
    assert ("tokenizer" in done.stderr.lower()) is (code != 2)
    assert (done.returncode == 2) is (code == 2), done.stderr


def test_the_plan_shows_it(small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tunings = {"a": FULL, "b": Lora(), "c": FULL}
    entries = memory.plan(small_model, tunings, train(precision="fp32", processes=1), False)
    assert [entry["variants"] for entry in entries] == [["a", "c"], ["b"]]
    assert json.loads(json.dumps(entries)) == entries
    for entry in entries:
        assert entry["sum"] == sum(entry[column] for column in memory.COLUMNS)
    memory.show_plan(entries)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line][-2:] == ["full", "lora"]
    missing = memory.plan(tmp_path, tunings, train(), False)
    memory.show_plan(missing)
    told = capsys.readouterr().out
    assert told == f"train a, b, c: {tmp_path}/config.json: not found; run `dvc repro models`\n"


def test_the_command_plans_another_machine() -> None:
    command = [sys.executable, "-m", "anamnesis.memory", "--config", "conf/shapes/8b.json", "conf/shapes/70b.json"]
    command += ["--devices", "8", "--machines", "2", "--device-gib", "80", "--host-gib", "1000"]
    done = subprocess.run([*command, "--json"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    small, large = json.loads(done.stdout)
    assert (small["model"], small["parameters"], small["world"]) == ("8b", PARAMETERS["8b"], 16)
    kinds = {(row["zero"], row["offload"]): row["verdict"] for row in large["rows"]}
    assert kinds[2, "none"] == "refused"
    assert kinds[3, "none"] == "tight"
    assert list(kinds) == [(1, "none"), (1, "optimizer"), (2, "none"), (2, "optimizer")] + [
        (3, offload) for offload in ("none", "optimizer", "all")
    ]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.splitlines()
    assert len(shown) == 1 + 14 + 1
    assert shown[0].split()[:5] == ["model", "ZeRO", "offload", "weights", "gradients"]
    wrong = subprocess.run([*command, "--micro-batch", "0"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: ")
    assert len(wrong.stderr.splitlines()) == 1
