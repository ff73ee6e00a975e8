"""A mistake in params.yaml is one line that names the key, and exit code 2, before any work."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from anamnesis import foresight
from anamnesis import params as settings
from anamnesis.errors import UserError
from anamnesis.sections import PAPER_ROWS

ROOT = Path(__file__).resolve().parent.parent

EXPECTED = [  # (path of the key, its value, words the line must hold)
    ("mix.domain_fracton", 0.3, ["mix.domain_fracton", "unknown key"]),
    ("mix", {"domain_fractoin": 0.3, "total": 12}, ["mix.domain_fractoin", "did you mean domain_fraction?"]),
    ("mix", [], ["mix", "expected keys with values"]),
    ("models.smollm2.uri", [], ["models.smollm2.uri", "empty list"]),
    ("models.smollm2.uri", ["pypi:a==1#b", "pipy:a==1#b"], ["models.smollm2.uri", "'pipy:a==1#b' is no model URI"]),
    ("models.gpt-4", {"base_url": "https://", "model": "x"}, ["models.gpt-4.base_url"]),
    ("models.smollm2.api_key_env", "sk-proj-123", ["models.smollm2.api_key_env", "like OPENAI_API_KEY"]),
    ("models.smollm2.api_key_env", "sk_proj_123", ["models.smollm2.api_key_env", "like OPENAI_API_KEY"]),
    ("probe.scripts", ["LATINN"], ["probe.scripts.0", "'LATINN'"]),
    ("probe.scripts", [], ["probe.scripts"]),
    ("train.learning_rate", float("inf"), ["train.learning_rate", "finite"]),
    ("variants.single-single.members", ["smollm2", "smollm2"], ["variants.single-single", "twice"]),
    ("clean.languages", ["en", "klingon"], ["clean.languages.1", "'klingon' is not known; known: ace, af"]),
    ("distribution.sample", 100_000, ["distribution.sample", "less than or equal to 5000", "100000"]),
    ("mix.domain_fraction", 1.7, ["mix.domain_fraction", "less than or equal to 1", "1.7"]),
    ("mix.total", "many", ["mix.total", "integer", "many"]),
    ("mix.total", 0, ["mix.total", "greater than or equal to 1"]),
    ("train.zero", 4, ["train.zero", "0, 1, 2 or 3"]),
    ("train.global_batch", 7, ["global_batch (7)"]),
    ("train.micro_batch", 3, ["train", "not a multiple", "micro_batch"]),
    ("probe.max_requests", 1, ["probe", "max_requests (1) is below instructions"]),
    ("seed", None, ["seed", "integer"]),
    ("target", "gpt-9", ["target", "gpt-9"]),
    ("models.smollm2.uri", "http://x/y", ["models.smollm2.uri", "no model URI"]),
    ("models.smollm2.sha256", "abc", ["models.smollm2.sha256"]),
    ("models.smollm2.enabled", False, ["target", "enabled member"]),
    ("models.Qwen2.5", {"uri": "path:x"}, ["models.Qwen2.5", "lower-case"]),
    ("models.gpt-4", {"base_url": "https://x/v1"}, ["models.gpt-4", "needs `model`"]),
    ("models.gpt-4", {}, ["models.gpt-4", "needs `uri`"]),
    ("models.gpt-4", {"base_url": ["http://a/v1", "http://a/v1"], "model": "x"}, ["models.gpt-4.base_url", "twice"]),
    ("models.gpt-4", {"base_url": ["http://a/v1", "b"], "model": "x"}, ["models.gpt-4.base_url", "'b' is no server"]),
    ("models.smollm2.mode", "batch", ["models.smollm2", "needs `base_url`"]),
    ("models.smollm2.samples_per_request", 0, ["models.smollm2.samples_per_request"]),
    ("prices.ghost", {"input": 1, "output": 1}, ["prices.ghost", "no such entry under models"]),
    ("prices.smollm2", {"input": 1}, ["prices.smollm2.output", "missing"]),
    ("requests.limits.ghost", {}, ["requests.limits.ghost", "no such entry under models"]),
    ("models.gpt-4", {"base_url": "http://a:b/v1", "model": "x"}, ["models.gpt-4.base_url", "'http://a:b/v1'"]),
    ("budget.tokens", -1, ["budget.tokens"]),
    ("committee.ghost", {}, ["committee.ghost", "no such entry under models"]),
    ("judges.qwen-coder.mode", "guess", ["judges.qwen-coder.mode", "expected"]),
    ("variants.base", {"rehearsal": "none"}, ["variants.base"]),
    ("variants.committee.judges", ["ghost"], ["variants.committee.judges", "ghost"]),
    ("variants.committee.judges", [], ["variants.committee", "judges"]),
    ("variants.committee.members", [], ["variants.committee", "members"]),
    ("variants.committee.rehearsal", "sharegtp", ["variants.committee.rehearsal"]),
    ("variants.wild", {"rehearsal": "sharegtp"}, ["variants.wild.rehearsal", "'sharegtp'", "known:", "sharegpt"]),
    ("variants.wild", {"rehearsal": "wildchat", "members": ["smollm2"]}, ["variants.wild", "instructions: wildchat"]),
    ("variants.committee.instructions", "sharegtp", ["variants.committee.instructions", "'sharegtp'", "probed"]),
    ("variants.domain-only.instructions", "sharegpt", ["variants.domain-only", "rehearsal: reconstructed"]),
    ("rehearsal.sources", {"mine": {}}, ["rehearsal.sources.mine", "needs `source`"]),
    ("rehearsal.sources", {"none": {"source": "path:x"}}, ["rehearsal.sources.none", "none of"]),
    (
        "rehearsal.sources",
        {"mine": {"source": "mine.jsonl"}},
        ["rehearsal.sources.mine.source", "path:<file or folder>"],
    ),
    ("rehearsal.sources", {"mine": {"source": "hf:a/b"}}, ["rehearsal.sources.mine.source", "hf:<repo>@<revision>"]),
    ("rehearsal.rows", 0, ["rehearsal.rows"]),
    ("rehearsal.turns", "last", ["rehearsal.turns", "'first' or 'all'"]),
    ("select.tie", 1.0, ["select.tie"]),
    ("select.min_score", 6, ["select.min_score"]),
    ("variants.committee.rule", "best", ["variants.committee.rule", "'median'", "'leave-own-judge-out'"]),
    ("variants.committee.min_margin", -0.1, ["variants.committee.min_margin"]),
    ("variants.single-single.min_score", 3, ["variants.single-single", "`min_score`", "rule: first"]),
    (
        "variants.committee",
        {"rehearsal": "reconstructed", "members": ["smollm2"], "judges": ["smollm2"], "rule": "leave-own-judge-out"},
        ["variants.committee.judges", "smollm2 would judge itself alone", "name another judge"],
    ),
    (
        "select",
        {"heldout": 0.4, "min_votes": 0, "min_score": 2},
        ["variants.committee.min_score", "min_votes: 0", "raise min_votes to 1"],
    ),
    ("converse.share", 1.5, ["converse.share", "less than or equal to 1"]),
    ("converse.turns", {"min": 1, "max": 5}, ["converse.turns.min"]),
    ("converse.turns", {"min": 4, "max": 3}, ["converse.turns", "min (4) is above max (3)"]),
    ("converse.systems", [{"text": "A"}, {"text": "A"}], ["converse", "one text twice"]),
    ("converse.systems", [{"text": "", "weight": 1}], ["converse.systems.0.text"]),
    ("converse.systems", [{"text": "A", "weight": 0}], ["converse.systems.0.weight"]),
    ("converse", {"share": 0.1, "max_tokens": 2000}, ["converse.max_tokens: 2000 leaves committee.", "1952"]),
    ("converse", {"share": 0.1, "max_tokens": 1500}, ["converse.max_tokens: 1500 leaves judges.", "1152"]),
    ("report.bootstrap", 3, ["report.bootstrap"]),
    ("mix.unit", "words", ["mix.unit", "examples", "tokens"]),
    ("mix.domains", {"old": {"source": "x.jsonl", "fraction": 0.9}}, ["mix", "add up to 1.07"]),
    ("mix.domains", {"Old": {"source": "x.jsonl", "fraction": 0.1}}, ["domains.Old", "lower-case"]),
    ("mix.domains", {"old": {"fraction": 0.1}}, ["mix.domains.old.source", "missing"]),
    ("clean.near_duplicates", 0.0, ["clean.near_duplicates", "greater than 0"]),
    ("clean.evaluation_sets", {"heldout": "x.jsonl"}, ["clean", "evaluation_sets.heldout", "taken"]),
    ("clean.evaluation_sets", {"MMLU": "x.jsonl"}, ["clean", "evaluation_sets.MMLU", "lower-case"]),
    ("mix.total", 60, ["mix.total", "rehearsal rows", "lower mix.total"]),
    ("domain.train", 10, ["mix.total", "variants.domain-only", "domain.train"]),
    ("committee.smollm2.sampling", {"max_tokens": 2048}, ["committee.smollm2.sampling.max_tokens", "max_model_len"]),
]


def _set(params: dict[str, Any], path: str, value: Any) -> None:
    section, *rest = path.split(".", 1 if path.startswith("models.Qwen") else -1)
    if not rest:
        params[section] = value
        return
    node = params[section]
    for key in rest[:-1]:
        node = node[key]
    node[rest[-1]] = value


@pytest.mark.parametrize(("path", "value", "words"), EXPECTED)
def test_a_mistake_is_one_line_naming_the_key(
    path: str, value: Any, words: list[str], default_params: dict[str, Any], tmp_path: Path
) -> None:
    _set(default_params, path, value)
    if path == "train.global_batch":
        default_params["train"]["micro_batch"] = 2
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(default_params), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        settings.load(file)
    line = str(caught.value)
    assert "\n" not in line
    assert "123" not in line  # a key written in place of its variable's name
    assert caught.value.code == 2
    for word in words:
        assert word in line, line


def test_a_variant_overrides_the_thresholds(default_params: dict[str, Any]) -> None:
    default_params["select"] |= {"min_score": 2.5, "min_margin": 0.1}
    default_params["variants"]["committee"] |= {"min_score": 0, "tie": 0.05}
    params = settings.Params.model_validate(default_params)
    own = {"min_votes": 2, "min_score": 0, "min_margin": 0.1, "tie": 0.05}
    assert params.variants["committee"].thresholds(params.select) == own


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rehearsal": {"rows": 3}}, "mix.total: .* variants.wild, and 3 of rehearsal.rows .* raise rehearsal.rows"),
        ({"rehearsal": {"rows": 20}}, None),
        ({"rehearsal": {"instructions": 3}, "asked": True}, "variants.wild, and 3 of rehearsal.instructions"),
        ({"rehearsal": {"instructions": 20}, "asked": True}, None),
    ],
)
def test_the_pool_of_a_source_is_its_own(
    changes: dict[str, Any], words: str | None, default_params: dict[str, Any], tmp_path: Path
) -> None:
    default_params["rehearsal"] |= changes["rehearsal"]
    wild = {"rehearsal": "reconstructed", "instructions": "wildchat", "members": ["smollm2"], "rule": "first"}
    default_params["variants"]["wild"] = wild if changes.get("asked") else {"rehearsal": "wildchat"}
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(default_params), encoding="utf-8")
    if words is None:
        assert settings.load(file).rehearsal_sources() == ["wildchat"]
        return
    with pytest.raises(UserError, match=words):
        settings.load(file)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("seed: 1\nseed: 2\n", "written twice"),
        ("- a\n", "expected sections"),
        ("seed: [\n", "not valid YAML"),
        ("seed: 1\n", "missing key"),
    ],
)
def test_a_broken_file_is_one_line(text: str, word: str, tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=word) as caught:
        settings.load(file)
    assert "\n" not in str(caught.value)


def test_scientific_notation_without_a_point_is_a_number(default_params: dict[str, Any], tmp_path: Path) -> None:
    text = yaml.safe_dump(default_params).replace("learning_rate: 0.0001", "learning_rate: 2e-5")
    assert "2e-5" in text
    file = tmp_path / "params.yaml"
    file.write_text(text, encoding="utf-8")
    assert settings.load(file).train.learning_rate == 2e-5


def test_one_line_drops_a_member(default_params: dict[str, Any], tmp_path: Path) -> None:
    default_params["models"]["qwen-coder"]["enabled"] = False
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(default_params), encoding="utf-8")
    params = settings.load(file)
    assert params.members() == ["smollm2"]
    assert params.enabled_judges() == ["smollm2"]


@pytest.mark.parametrize(
    "stage",
    [
        "models",
        "domain",
        "probe",
        "rehearse",
        "respond",
        "judge",
        "select",
        "agree",
        "mix",
        "train",
        "evaluate",
        "report",
    ],
)
def test_every_stage_stops_at_once_with_code_2(stage: str, default_params: dict[str, Any], tmp_path: Path) -> None:
    for name in ("anamnesis", "stages", "prompts", "conf"):
        (tmp_path / name).symlink_to(ROOT / name)
    default_params["mix"]["domain_fracton"] = 0.3
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(default_params), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", f"stages.{stage}", "smollm2"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert [line for line in done.stderr.splitlines() if line] == [
        "error: params.yaml: mix.domain_fracton: unknown key"
    ]
    assert not any(path.name not in ("params.yaml",) and not path.is_symlink() for path in tmp_path.iterdir())


def test_presets_have_the_keys_of_params() -> None:
    free = (  # a preset has its own keys below these
        "models committee judges variants continued interpolations prices rehearsal.sources report.labels "
        "evaluate.domain_sets"
    ).split()

    def keys(node: Any, path: str) -> set[str]:
        if not isinstance(node, dict) or path in free:
            return {path}
        return (
            set().union(*(keys(value, f"{path}.{key}".lstrip(".")) for key, value in node.items())) if node else {path}
        )

    presets = sorted((ROOT / "presets").glob("*.yaml"))
    assert presets
    default = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for preset in presets:
        foresight.check_licences(settings.load(preset))
        assert keys(yaml.safe_load(preset.read_text(encoding="utf-8")), "") == keys(default, ""), preset.name


ROWS = {  # of the two tables, and what a reader asks next, by what a preset must have for them
    "paper": (18, set(PAPER_ROWS)),
    "laptop-gpu": (15, set()),
    "ablations-cpu": (13, set()),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_preset_has_every_row(name: str) -> None:
    params = settings.load(ROOT / f"presets/{name}.yaml")
    count, rows = ROWS[name]
    assert len(params.variants) == count
    assert {params.label(model).paper for model in params.evaluated()} - {None} == rows
    assert all(params.label(model).label for model in params.evaluated())
    kinds = [(variant.rehearsal, variant.rule, variant.borrowed is not None) for variant in params.variants.values()]
    for wanted in ("mean", "random", "first", "leave-own-judge-out"):
        assert ("reconstructed", wanted, False) in kinds
    assert ("none", "mean", False) in kinds
    assert ("reconstructed", "mean", True) in kinds
    assert len([one for one in kinds if one[0] not in ("none", "reconstructed")]) >= 3
    assert len(params.interpolations) == 3
    methods = {variant.tuning.method for variant in params.variants.values()}
    assert methods == ({"lora"} if name == "laptop-gpu" else {"full", "lora", "l2-sp", "kl"})


def test_the_paper_s_scale() -> None:
    params = settings.load(ROOT / "presets/paper.yaml")
    train = params.train
    assert (train.learning_rate, train.global_batch, train.sequence_length, train.epochs) == (1e-6, 64, 4096, 1)
    assert (train.processes, train.zero, train.precision, train.activation_checkpointing) == (8, 3, "bf16", True)
    assert (params.probe.instructions, params.mix.domain_fraction) == (100_000, 0.17)
    assert (params.evaluate.suites, params.evaluate.backend) == (["leaderboard"], "vllm")
    ours = params.variants["ours"]
    assert (len(ours.members), len(ours.judges), ours.samples, ours.rule) == (3, 3, 3, "mean")


# --- further seeds, interpolations, labels ---

MISTAKES = [
    ({"train": {"seeds": [1]}}, "train: `seeds` says nothing without `seeded`"),
    ({"train": {"seeded": ["committee"]}}, "train: `seeded` says nothing without `seeds`"),
    ({"train": {"seeds": [1, 1], "seeded": ["committee"]}}, "train: `seeds` names one twice: 1, 1"),
    ({"train": {"seeds": [-1], "seeded": ["committee"]}}, "train.seeds.0: Input should be greater than or equal to 0"),
    ({"train": {"seeds": [17], "seeded": ["committee"]}}, "train.seeds: 17 is the main seed"),
    ({"train": {"seeds": [1], "seeded": ["comittee"]}}, "train.seeded: 'comittee' is no variant; known: "),
    ({"interpolations": {"base": {"variant": "committee", "alpha": 0.5}}}, "interpolations.base: the name is taken"),
    ({"interpolations": {"Half": {"variant": "committee", "alpha": 0.5}}}, "interpolations.Half: a key is lower-case"),
    (
        {"interpolations": {"committee": {"variant": "committee", "alpha": 0.5}}},
        "interpolations.committee: a variant has the name",
    ),
    ({"interpolations": {"half": {"variant": "x", "alpha": 0.5}}}, "interpolations.half.variant: 'x' is no variant"),
    ({"interpolations": {"half": {"variant": "committee", "alpha": 1.5}}}, "interpolations.half.alpha: "),
    ({"report": {"labels": {"x": {"label": "X"}}}}, "report.labels.x: no such model in the report; known: base, "),
    ({"report": {"labels": {"committee": {"paper": "mine"}}}}, "'mine' is no row of the paper's tables; known: base, "),
    ({"variants": {"committee": {"tuning": "qlora"}}}, "variants.committee.tuning: "),
]


@pytest.mark.parametrize(("change", "words"), MISTAKES)
def test_mistakes_in_what_is_trained_and_shown(
    change: dict[str, Any], words: str, default_params: dict[str, Any], tmp_path: Path
) -> None:
    def merge(into: dict[str, Any], what: dict[str, Any]) -> None:
        for key, value in what.items():
            if isinstance(value, dict) and isinstance(into.get(key), dict):
                merge(into[key], value)
            else:
                into[key] = value

    merge(default_params, change)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(default_params), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        settings.load(tmp_path / "params.yaml")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_models_of_the_report_and_further_runs(default_params: dict[str, Any], tmp_path: Path) -> None:
    default_params["train"] |= {"seeds": [3, 5], "seeded": ["committee", "domain-only"]}
    default_params["interpolations"] = {"half": {"variant": "domain-only", "alpha": 0.5}}
    default_params["report"]["labels"] = {"half": {"label": "half of the way"}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(default_params, sort_keys=False), encoding="utf-8")
    params = settings.load(tmp_path / "params.yaml")
    assert params.evaluated() == ["base", "domain-only", "single-single", "committee", "half"]
    assert params.reseeded() == [("committee", 3), ("committee", 5), ("domain-only", 3), ("domain-only", 5)]
    assert params.label("half").label == "half of the way"
    assert params.label("base").label is None


def test_every_key_is_documented(default_params: dict[str, Any]) -> None:
    text = (ROOT / "docs/params.md").read_text(encoding="utf-8")
    for section in (
        "serve",
        "requests",
        "domain",
        "probe",
        "rehearsal",
        "select",
        "mix",
        "train",
        "evaluate",
        "report",
    ):
        for key in default_params[section]:
            assert f"`{section}.{key}" in text or f"`.{key}`" in text, f"{section}.{key}"


@pytest.mark.parametrize(
    ("text", "words"), [("system: {{ x }}\n", "line 1: a key must be plain text"), ("? [a, b]\n: 1\n", "line 1: a key")]
)
def test_a_key_that_is_no_text_is_one_line(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=words):
        settings.load(tmp_path / "params.yaml")
    with pytest.raises(UserError, match="can't be read"):
        settings.load(tmp_path)


def test_a_hash_that_begins_like_a_number_is_none(default_params: dict[str, Any], tmp_path: Path) -> None:
    default_params["models"]["smollm2"]["sha256"] = "6e1b" * 16
    text = yaml.safe_dump(default_params)
    assert "sha256: 6e1b" in text  # without quotes
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    assert settings.load(tmp_path / "params.yaml").models["smollm2"].sha256 == "6e1b" * 16
