"""Chains of domains: a variant that starts from another one's weights, from params over mix and DAG to the report."""

import contextlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pages import Tree, make
from synthetic_run import load_params, write_run

from anamnesis import packing, publishing, ranks, records, training, trainset
from anamnesis import params as settings
from anamnesis.cards import weights_identity
from anamnesis.errors import MODEL_UNAVAILABLE, POOL_TOO_SMALL, UserError
from anamnesis.params import Params
from stages import mix, train

ROOT = Path(__file__).resolve().parent.parent
RECONSTRUCTED = {"rehearsal": "reconstructed", "members": ["smollm2"], "judges": ["smollm2"]}
CHAIN = {  # written the wrong way round: the order of a mapping is no order of training
    "third": {"init": "second", "rehearsal": "none"},
    "second": {"init": "committee", "domain": "cardiology", **RECONSTRUCTED},
}
DOMAINS = {"cardiology": {"source": "data/own/cardiology.jsonl", "fraction": 0}}


def with_chain(raw: dict[str, Any], **more: dict[str, Any]) -> dict[str, Any]:
    """Params with three domains in a row: committee, second, third."""
    raw["mix"]["domains"] = DOMAINS
    raw["continued"] = {name: dict(entry) for name, entry in (CHAIN | more).items()}
    return raw


# --- params ---

MISTAKES: list[tuple[dict[str, Any], str]] = [  # what is under `continued`, and the line
    ({"second": {"rehearsal": "none"}}, "continued.second.init: missing key"),
    (
        {"second": {"init": "comittee", "rehearsal": "none"}},
        "continued.second.init: 'comittee' is no variant; known: domain-only, single-single, committee",
    ),
    ({"a": {"init": "a", "rehearsal": "none"}}, "continued.a.init: goes round in a circle: a from a"),
    (
        {"x": {"init": "a", "rehearsal": "none"}, "a": {"init": "b", "rehearsal": "none"}}
        | {"b": {"init": "a", "rehearsal": "none"}},
        "continued.x.init: goes round in a circle: x from a from b from a",
    ),
    ({"committee": {"init": "domain-only", "rehearsal": "none"}}, "continued.committee: a variant has the name"),
    ({"base": {"init": "committee", "rehearsal": "none"}}, "continued.base: the name is taken by the model before"),
    ({"Second": {"init": "committee", "rehearsal": "none"}}, "continued.Second: a key is lower-case letters"),
    ({"half": {"init": "committee", "rehearsal": "none"}}, "interpolations.half: a variant has the name"),
    ({"second": {"init": "half", "rehearsal": "none"}}, "continued.second.init: 'half' is no variant; known: "),
    (
        {"second": {"init": "committee", "domain": "radiology", "rehearsal": "none"}},
        "continued.second.domain: 'radiology' is not under mix.domains; known: cardiology",
    ),
    (
        {"second": {"init": "committee", "rehearsal": "reconstructed"}},
        "continued.second: rehearsal: reconstructed needs",
    ),
    (
        {"second": {"init": "committee", **RECONSTRUCTED, "members": ["ghost"]}},
        "continued.second.members: 'ghost' is not there",
    ),
    (
        {"second": {"init": "committee", **RECONSTRUCTED, "rule": "leave-own-judge-out"}},
        "continued.second.judges: smollm2 would judge itself alone",
    ),
    ({"second": {"init": "committee", "rehearsal": "sharegtp"}}, "continued.second.rehearsal: no source 'sharegtp'"),
]


@pytest.mark.parametrize(("continued", "line"), MISTAKES, ids=[line.split(":")[0] for _, line in MISTAKES])
def test_a_mistake_is_one_line(
    continued: dict[str, Any], line: str, default_params: dict[str, Any], tmp_path: Path
) -> None:
    default_params["mix"]["domains"] = DOMAINS
    default_params["interpolations"] = {"half": {"variant": "domain-only", "alpha": 0.5}}
    default_params["continued"] = continued
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(default_params, sort_keys=False), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        settings.load(tmp_path / "params.yaml")
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_further_seeds_are_not_for_continued_ones(default_params: dict[str, Any]) -> None:
    with_chain(default_params)["train"] |= {"seeds": [3], "seeded": ["second"]}
    with pytest.raises(ValueError, match=r"train\.seeded: 'second' starts from another variant's weights"):
        Params.model_validate(default_params)


def test_all_that_is_tuned(default_params: dict[str, Any]) -> None:
    with_chain(default_params)["interpolations"] = {"half": {"variant": "third", "alpha": 0.5}}
    default_params["continued"]["second"] |= {"rehearsal": "reconstructed", "instructions": "wildchat"}
    params = Params.model_validate(default_params)
    assert list(params.variants) == ["domain-only", "single-single", "committee"]
    assert list(params.tuned_variants()) == ["domain-only", "single-single", "committee", "third", "second"]
    assert params.evaluated() == ["base", *params.tuned_variants(), "half"]
    assert params.rehearsal_sources() == ["wildchat"]
    assert (params.key_of("committee"), params.key_of("second")) == ("variants.committee", "continued.second")
    assert params.fractions_of("second") == {"domain:cardiology": 0.17}
    assert params.fractions_of("third") == params.fractions_of("committee") == {"domain": 0.17, "domain:cardiology": 0}


def test_the_example_in_the_docs_is_one(default_params: dict[str, Any]) -> None:
    text = (ROOT / "docs/training.md").read_text(encoding="utf-8").partition("## A chain of domains\n\n```yaml\n")[2]
    for section, entries in yaml.safe_load(text.partition("```")[0]).items():
        default_params[section] |= entries
    params = Params.model_validate(default_params)
    assert list(params.continued) == ["second", "second-kept", "third"]
    assert params.fractions_of("second-kept") == {"domain:cardiology": 0.17}


# --- the mix ---


def rows_of(count: int, source: str, member: str | None = None) -> list[dict[str, Any]]:
    rows = []
    for place in range(count):
        row_id = records.digest(source, place)
        said = [{"role": "user", "content": f"{source} {place}?"}, {"role": "assistant", "content": f"It is {place}."}]
        row = {"row_id": row_id, "order_id": row_id, "messages": said, "source": source, "member": member}
        rows.append(row | {"licence": "CC0-1.0", "status": "ok", "reason": None})
    return rows


@pytest.mark.slow
def test_another_domain_in_the_main_one_s_place(
    default_params: dict[str, Any], project: Callable[..., Path], small_model: Path
) -> None:
    """Exact numbers by source, in the stage itself; a variant that isn't continued takes none of a domain at 0."""
    alone = {"init": "domain-only", "domain": "cardiology", "rehearsal": "none"}
    with_chain(default_params, alone=alone, dry=alone)["mix"]["total"] = 12
    folder = project(default_params, smollm2=small_model)

    def write(cardiology: int) -> None:
        domain = rows_of(14, "domain") + rows_of(cardiology, "domain:cardiology")
        records.write(folder / "data/domain/cleaned.parquet", domain, records.CLEANED, ["source", "row_id"])

    for name in ("single-single", "committee", "second"):
        rows = rows_of(11, "reconstructed", "smollm2")
        records.write(folder / f"data/cleaned/{name}.parquet", rows, records.CLEANED, ["source", "row_id"])
    write(13)
    with contextlib.chdir(folder):
        mix.main()
    found = {}
    for file in (folder / "data/mixed").glob("*.parquet"):
        found[file.stem] = dict(Counter(row["source"] for row in records.read(file, records.MIXED)))
    assert found == {
        "domain-only": {"domain": 12},
        "single-single": {"domain": 2, "reconstructed": 10},  # 12 x 0.17 is 2.04
        "committee": {"domain": 2, "reconstructed": 10},
        "second": {"domain:cardiology": 2, "reconstructed": 10},
        "third": {"domain": 12},
        "alone": {"domain:cardiology": 12},
        "dry": {"domain:cardiology": 12},
    }
    metrics = json.loads((folder / "metrics/mix.json").read_text(encoding="utf-8"))
    assert metrics["second.rows.domain:cardiology"] == 2
    assert metrics["second.domain_share.rows"] == metrics["committee.domain_share.rows"]

    write(5)
    with contextlib.chdir(folder), pytest.raises(UserError) as caught:
        mix.main()
    assert caught.value.code == POOL_TOO_SMALL
    assert str(caught.value) == (
        "continued.alone: 12 rows of mix.domains.cardiology are needed (mix.total 12, rehearsal: none) and 5 are "
        "there; lower mix.total to 5 or add rows"
    )


def test_a_set_of_domain_rows_alone_where_the_fraction_is_0(default_params: dict[str, Any]) -> None:
    with_chain(default_params, alone={"init": "domain-only", "domain": "cardiology", "rehearsal": "none"})
    default_params["mix"]["domain_fraction"] = 0
    params = Params.model_validate(default_params)
    parts = {name: mix.mixing.needs(12, params.fractions_of(name), False) for name in ("alone", "third")}
    assert parts == {"alone": {"domain:cardiology": 12}, "third": {"domain": 12, "domain:cardiology": 0}}


# --- the DAG ---

STEP = """
import pathlib, sys
with open("ran.txt", "a") as ran:
    print(sys.argv[1], file=ran)
for out in sys.argv[2:]:
    pathlib.Path(out).parent.mkdir(parents=True, exist_ok=True)
    pathlib.Path(out).write_text(f"{sys.argv[1]} {pathlib.Path('salt').read_text()}")
"""
TRAINING = ("train", "train-continued")


@pytest.fixture
def toy(default_params: dict[str, Any], tmp_path: Path) -> Path:
    """dvc.yaml's own training stages with their params and data, around a script that writes a word in no time."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    stages = {name: stages[name] for name in TRAINING}
    for stage in stages.values():
        entry = stage.get("do", stage)
        name = entry["cmd"].removeprefix("python -m stages.train ")
        assert name != entry["cmd"]
        entry["cmd"] = f"python step.py {name} models/tuned/{name} metrics/train/{name}.csv"
        entry["deps"] = [path for path in entry["deps"] if path.startswith(("models/", "data/"))]
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False), encoding="utf-8")
    (tmp_path / "step.py").write_text(STEP, encoding="utf-8")
    (tmp_path / "salt").write_text("1", encoding="utf-8")
    for name in (*default_params["variants"], *CHAIN):
        (tmp_path / f"data/mixed/{name}.parquet").parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"data/mixed/{name}.parquet").write_text(name, encoding="utf-8")
    (tmp_path / "models/pretrained/smollm2").mkdir(parents=True)
    (tmp_path / "models/pretrained/smollm2/weights").write_text("base", encoding="utf-8")
    write_params(tmp_path, with_chain(default_params))
    dvc(tmp_path, "init", "--no-scm", "-q")
    return tmp_path


def write_params(folder: Path, raw: dict[str, Any]) -> None:
    (folder / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False), encoding="utf-8")


def dvc(folder: Path, *arguments: str) -> str:
    environment = os.environ | {
        "HOME": str(folder), "DVC_NO_ANALYTICS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    }  # fmt: skip
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def repro(folder: Path) -> list[str]:
    """`dvc repro`: which variants it trained, in order."""
    (folder / "ran.txt").write_text("", encoding="utf-8")
    dvc(folder, "repro")
    return (folder / "ran.txt").read_text(encoding="utf-8").split()


def test_a_chain_of_three_is_a_chain_in_the_dag_and_is_trained_in_its_order(
    toy: Path, default_params: dict[str, Any]
) -> None:
    drawn = dvc(toy, "dag", "--dot")
    edges = [line.rstrip(";") for line in drawn.splitlines() if "->" in line]
    assert sorted(edges) == [
        '"train-continued@second" -> "train-continued@third"',
        '"train@committee" -> "train-continued@second"',
    ]
    ran = repro(toy)
    assert sorted(ran) == sorted([*default_params["variants"], *CHAIN])
    assert ran.index("committee") < ran.index("second") < ran.index("third")
    assert repro(toy) == []

    default_params["continued"]["second"]["samples"] = 2
    write_params(toy, default_params)
    (toy / "salt").write_text("2", encoding="utf-8")  # other weights come out
    assert repro(toy) == ["second", "third"]
    default_params["variants"]["domain-only"]["tuning"] = "kl"
    write_params(toy, default_params)
    assert repro(toy) == ["domain-only"]


def test_no_continued_variant_is_no_stage(toy: Path, default_params: dict[str, Any]) -> None:
    write_params(toy, default_params | {"continued": {}})
    assert dvc(toy, "stage", "list", "--name-only").split() == [f"train@{name}" for name in default_params["variants"]]
    assert sorted(repro(toy)) == sorted(default_params["variants"])


def test_the_whole_pipeline_draws_a_chain(default_params: dict[str, Any], tmp_path: Path) -> None:
    """dvc.yaml as it is: what is trained from a variant is measured and reported like one."""
    (tmp_path / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    write_params(tmp_path, with_chain(default_params))
    dvc(tmp_path, "init", "--no-scm", "-q")
    edges = {line.rstrip(";").replace('"', "") for line in dvc(tmp_path, "dag", "--dot").splitlines()}
    assert {
        "train@committee -> train-continued@second",
        "train-continued@second -> train-continued@third",
        "mix -> train-continued@third",
        "train-continued@third -> evaluate-continued@third",
        "evaluate-continued@third -> report",
        "train-continued@third -> report",
    } <= edges


# --- training ---


def run_stage(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "stages.train", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_checkpoint_is_of_one_init(
    default_params: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other weights in models/tuned/<init> are another run: its checkpoint is not gone on from."""
    import torch
    from safetensors.torch import save_file

    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.chdir(tmp_path)
    params = Params.model_validate(with_chain(default_params))
    folder = Path("models/tuned/committee")
    folder.mkdir(parents=True)
    keys = []
    for value in (1.0, 1.5, 1.0):
        save_file({"weight": torch.full((3,), value)}, folder / "model.safetensors")
        assert train.start_of(params, "second") == folder
        run = training.Run(
            variant="second",
            settings=params.train,
            seed=1,
            rows=[],
            model_dir=folder,
            identity=weights_identity(folder),
            trust_remote_code=False,
            deepspeed={},
            tuned_dir=tmp_path,
            curve=tmp_path,
            checkpoints=tmp_path,
        )
        keys.append(training.fingerprint(run, ranks.Ranks(0, 1, "cpu")))
    assert keys[0] == keys[2] != keys[1]
    assert train.start_of(params, "committee") == Path("models/pretrained/smollm2")
    with pytest.raises(UserError, match="run `dvc repro train-continued@second`"):
        train.start_of(params, "third")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "kl", {"method": "lora", "rank": 2}])
def test_training_starts_from_the_init_s_weights(
    method: Any,
    default_params: dict[str, Any],
    project: Callable[..., Path],
    small_model: Path,
    smollm2_tokenizer: Any,
) -> None:
    """One step over all rows: its loss is the init's, and the change is measured from there, not from base."""
    import torch
    from transformers import AutoModelForCausalLM

    with_chain(default_params)["continued"]["second"] |= {"tuning": method, "domain": None}
    default_params["train"] |= {"learning_rate": 1e-3, "epochs": 1, "sequence_length": 128, "global_batch": 64}
    folder = project(default_params, smollm2=small_model)
    rows = [row | {"tokens": 0} for row in rows_of(8, "domain")]
    records.write(folder / "data/mixed/second.parquet", rows, records.MIXED, ["row_id"])
    missing = run_stage(folder, "second")
    assert missing.returncode == MODEL_UNAVAILABLE
    assert missing.stderr == (
        "error: models/tuned/committee: no weights to start from; run `dvc repro train@committee`\n"
    )

    model = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32, attn_implementation="sdpa")
    rows = records.read(folder / "data/mixed/second.parquet", records.MIXED)
    examples, _ = trainset.encode_rows(smollm2_tokenizer, rows, 128)
    batch = packing.lay_out([[example] for example in examples], pad_id=2)
    supervised = sum(sum(example.supervised[1:]) for example in examples)

    def loss() -> float:
        with torch.no_grad():
            return training.summed_loss(model, batch, "cpu").item() / supervised

    at_base = loss()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)
    at_init = loss()
    assert abs(at_base - at_init) > 0.01
    init = folder / "models/tuned/committee"
    model.save_pretrained(init)
    smollm2_tokenizer.save_pretrained(init)

    done = run_stage(folder, "second")
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads((folder / "models/tuned/second/training.json").read_text(encoding="utf-8"))
    assert told["steps"] == 1
    assert told["first_loss"] == pytest.approx(at_init, abs=2e-5)
    assert told["base"] == weights_identity(init) != "small"
    trained = AutoModelForCausalLM.from_pretrained(folder / "models/tuned/second").state_dict()
    moved = max(float((trained[name] - weight).abs().max()) for name, weight in model.state_dict().items())
    assert told["change"]["max_abs_change"] == pytest.approx(moved, rel=1e-4)
    assert 0 < moved < 3e-3, "a step of 1e-3; from base it would be whole weights"


# --- the report and the export ---


def test_a_chain_is_reported_against_base_and_against_what_it_started_from(tmp_path: Path) -> None:
    params = write_run(tmp_path, with_chain(load_params()))
    make(tmp_path)
    flat = json.loads((tmp_path / "metrics/summary.json").read_text(encoding="utf-8"))
    for name, entry in params.continued.items():
        for measure in ("domain_text", "own_text", "arithmetic"):
            key = f"{name}.{measure}"
            against = flat[f"{key}.against.{entry.init}.diff"]
            assert against == pytest.approx(flat[key] - flat[f"{entry.init}.{measure}"], abs=2e-6)
            assert flat[f"{key}.diff"] == pytest.approx(flat[key] - flat[f"base.{measure}"], abs=2e-6)
            low, high = (flat[f"{key}.against.{entry.init}.{end}"] for end in ("low", "high"))
            assert low <= against <= high
        assert f"mix.{name}.rows" in flat
        assert f"train.{name}.last_loss" in flat
    assert "second.own_text.against.third.diff" not in flat
    table = (tmp_path / "report.md").read_text(encoding="utf-8")
    section = table.partition("## Against the variant that each continued one started from\n")[2].partition("\n## ")[0]
    assert "**third**: " in section
    assert "Worse than second elsewhere: " in " ".join(section.split())
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert all(page.count(f'id="from-{init}"') == 1 for init in ("committee", "second"))
    assert "<code>continued.second</code></th><td>from committee; domain cardiology; members smollm2" in page
    assert Tree(page).open == []
    frontier = (tmp_path / "metrics/frontier.csv").read_text(encoding="utf-8")
    assert [line.split(",")[0] for line in frontier.splitlines()[-2:]] == ["third", "second"]
    tables = {name: page.partition(f'id="{name}"')[2].partition("</table>")[0] for name in ("table-1", "table-2")}
    assert ["third" in tables[name] for name in tables] == [False, True], "the paper's sources all start from base"


def test_a_run_without_continued_ones_has_no_word_of_them(tmp_path: Path) -> None:
    write_run(tmp_path, load_params())
    make(tmp_path)
    for name in ("report.html", "report.md", "metrics/summary.json"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert "continued" not in text
        assert "Chain" not in text
        assert ".against.committee" not in text


def test_the_card_of_an_exported_set_names_its_own_domain(default_params: dict[str, Any]) -> None:
    params = Params.model_validate(with_chain(default_params))
    rows = [row | {"tokens": 3} for row in rows_of(4, "domain:cardiology")]
    card = publishing.files("second", rows, params, {})["README.md"]
    assert "domain rows (data/own/cardiology.jsonl) and rehearsal rows" in card
    excerpt = yaml.safe_load(card.rpartition("```yaml\n")[2].partition("```")[0])
    assert excerpt["continued"]["second"]["init"] == "committee"
    assert "variants" not in excerpt
    assert "domain rows (icd10cm)" in publishing.files("third", rows, params, {})["README.md"]
