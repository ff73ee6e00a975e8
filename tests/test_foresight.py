"""What would stop clean or mix stops the first stage that asks a model: before a request is made."""

import ast
import contextlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from anamnesis import foresight
from anamnesis.errors import BAD_INPUT, FORBIDDEN_LICENCE, UserError, run
from anamnesis.params import Params
from anamnesis.variants import LANGUAGES
from stages import check, converse, judge, plan, probe, respond

ROOT = Path(__file__).resolve().parent.parent
MAINS = {
    "probe": probe.main,
    "converse": converse.main,
    "respond smollm2": respond.main,
    "judge smollm2": judge.main,
    "plan": plan.main,
    "check": check.main,
}
QWEN = "Apache-2.0 (upstream, none stated in the packages)"


@pytest.mark.parametrize("command", MAINS)
def test_no_stage_that_asks_a_model_comes_that_far(
    command: str, default_params: dict[str, Any], project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    default_params["clean"]["evaluation_sets"] = {"ghost": "data/own/ghost.jsonl"}
    folder = project(default_params)  # without a model: anything that goes on fails otherwise
    monkeypatch.setattr(sys, "argv", command.split())
    with contextlib.chdir(folder), pytest.raises(UserError) as raised:
        MAINS[command]()
    line = "clean.evaluation_sets.ghost: data/own/ghost.jsonl: no such file or folder; paths start at the project's"
    assert str(raised.value).startswith(line)
    assert raised.value.code == BAD_INPUT


def test_every_missing_file_of_rows_is_named_at_once(
    default_params: dict[str, Any], project: Callable[..., Path]
) -> None:
    default_params["domain"]["source"] = "data/own/mine.jsonl"
    default_params["mix"]["domains"] = {"old": {"source": "hf:a/b@main", "fraction": 0.0}}
    default_params["rehearsal"]["sources"] = {
        name: {"source": f"path:data/own/{name}.jsonl"} for name in ("here", "gone", "unused")
    }
    default_params["variants"] |= {"one": {"rehearsal": "here"}, "two": {"rehearsal": "gone"}}
    folder = project(default_params)
    (folder / "data/own").mkdir(parents=True)
    (folder / "data/own/here.jsonl").write_text("{}\n", encoding="utf-8")
    with contextlib.chdir(folder):
        with pytest.raises(UserError) as raised:
            foresight.check(Params.model_validate(default_params))
        assert str(raised.value).startswith(
            "domain.source: data/own/mine.jsonl; rehearsal.sources.gone: data/own/gone.jsonl: no such file or folder; "
        )
        for name in ("mine", "gone"):
            (folder / f"data/own/{name}.jsonl").write_text("{}\n", encoding="utf-8")
        foresight.check(Params.model_validate(default_params))


def test_every_stage_with_a_client_looks_ahead() -> None:
    for file in (ROOT / "stages").glob("*.py"):
        text = file.read_text(encoding="utf-8")
        names = {
            alias.name
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.ImportFrom) and node.module in ("anamnesis.client", "anamnesis.turns")
            for alias in node.names
        }
        assert not names & {"Client", "Models"} or "foresight.check(params)" in text, file


def test_make_repro_tells_a_mistake_in_a_section_of_no_stage(
    default_params: dict[str, Any], project: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    shown = subprocess.run(["make", "-n", "repro"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert 0 < shown.index("python -m stages.check") < shown.index("python -m dvc repro")
    default_params["requests"]["concurency"] = 8
    with contextlib.chdir(project(default_params)), pytest.raises(SystemExit) as ended:
        run(check.main)
    assert ended.value.code == BAD_INPUT
    assert "concurency" in (line := capsys.readouterr().err)
    assert line.count("\n") == 1


def forbidding(raw: dict[str, Any], *patterns: str, **variants: dict[str, Any]) -> str:
    """The line that params with these variants and forbidden licences are refused by; empty where they are not."""
    changed = raw | {"mix": raw["mix"] | {"licences": {"forbid": list(patterns)}}}
    params = Params.model_validate(changed | ({"variants": variants} if variants else {}))
    try:
        foresight.check(params)
    except UserError as error:
        return str(error) if error.code == FORBIDDEN_LICENCE else f"exit code {error.code}"
    return ""


def test_a_forbidden_licence_of_a_member_or_the_target_names_the_variants(default_params: dict[str, Any]) -> None:
    assert forbidding(default_params, "GPL*", "Apache") == ""
    assert forbidding(default_params, QWEN) == (
        f"mix.licences.forbid: models.qwen-coder ({QWEN}) in variants.committee; "
        "leave these out, or take the licence off the list"
    )
    told = forbidding(default_params, "apache-2.0")
    assert "models.smollm2 (Apache-2.0) in variants.single-single, variants.committee;" in told
    alone = {"rehearsal": "reconstructed", "members": ["qwen-coder"], "rule": "first"}
    assert "models.smollm2" in forbidding(default_params, "Apache-2.0", alone=alone)  # it wrote the instructions
    assert forbidding(default_params, "Apache-2.0", none={"rehearsal": "none"}) == ""
    default_params["models"]["qwen-coder"]["enabled"] = False
    assert forbidding(default_params, QWEN) == ""


def test_a_forbidden_licence_of_a_public_set(default_params: dict[str, Any]) -> None:
    asked = {"rehearsal": "reconstructed", "instructions": "genqa", "members": ["qwen-coder"], "rule": "first"}
    default_params["mix"]["total"] = 4
    assert "tulu-v2-mix (ODC-BY-1.0; CC-BY-NC-4.0; CC" in forbidding(
        default_params, "CC-BY-NC*", wild={"rehearsal": "tulu-v2-mix"}
    )
    for pattern in ("unknown", "CC-BY-NC-4.0"):
        assert "genqa (unknown; CC-BY-NC-4.0) in variants.asked" in forbidding(default_params, pattern, asked=asked)
    assert forbidding(default_params, "Apache-2.0", asked=asked) == ""  # the target wrote nothing in it
    default_params["rehearsal"]["sources"] = {"genqa": {"licence": "CC-BY-4.0"}, "own": {"source": "path:tests"}}
    assert forbidding(default_params, "unknown", "CC-BY-NC*", asked=asked) == ""
    assert forbidding(default_params, "unknown", own={"rehearsal": "own"}) == ""  # its rows may name their own


def test_a_missing_package_and_an_unknown_kind(default_params: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    default_params["clean"]["personal_data"] = ["EMAIL", "SHOESIZE"]
    params = Params.model_validate(default_params)
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "datafog_core", None)
        with pytest.raises(UserError, match="needs the package datafog-core"):
            foresight.check(params)
    pytest.importorskip("datafog_core", reason="datafog-core is not installed (it is optional)")
    with pytest.raises(UserError, match=r"^clean.personal_data: 'SHOESIZE' is not known; known: .*EMAIL"):
        foresight.check(params)


def test_the_languages_are_those_of_the_package() -> None:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    assert sorted(LanguageIdentifier.from_model_file(MODEL_FILE).labels) == list(LANGUAGES)


@pytest.mark.parametrize("stage", ["probe", "converse", "respond", "judge"])
def test_what_is_looked_at_ahead_reruns_no_stage_that_asks(stage: str) -> None:
    keys = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"][stage]["params"]
    assert not [key for key in keys if key.startswith(("clean", "mix", "models"))]
