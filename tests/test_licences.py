"""Licences: each name stays whole from params.yaml to the card, a row has those of all who wrote it."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

from anamnesis import cleaning, records
from anamnesis import params as settings
from anamnesis.errors import UserError
from anamnesis.public_sets import PUBLIC_SETS

ROOT = Path(__file__).resolve().parent.parent
FILES = ["params.yaml", *sorted(str(file.relative_to(ROOT)) for file in (ROOT / "presets").glob("*.yaml"))]


def licences_in(raw: Any) -> list[str]:
    """Every value of a key `licence`, however deep."""
    if not isinstance(raw, dict):
        return []
    own = [raw["licence"]] if "licence" in raw else []
    return own + [one for value in raw.values() for one in licences_in(value)]


@pytest.mark.parametrize("file", FILES)
def test_every_licence_of_a_params_file_is_one_name_in_a_row_and_can_be_forbidden(file: str) -> None:
    named = licences_in(yaml.safe_load((ROOT / file).read_text(encoding="utf-8")))
    assert len(named) >= 3
    for licence in named:
        row = records.licence_of_all(licence, "MIT")
        assert set(records.licences_of(row)) == {licence, "MIT"}
        assert records.is_under(row, [licence.upper()])


@pytest.mark.parametrize("name", PUBLIC_SETS)
def test_the_licences_of_a_public_set_stay_whole(name: str) -> None:
    each = records.licences_of(PUBLIC_SETS[name].licence)
    assert all(one == one.strip() and ";" not in one and one != "none stated" for one in each)
    assert set(records.licences_of(records.licence_of_all("MIT", PUBLIC_SETS[name].licence))) == {"MIT", *each}
    assert all(records.is_under(records.licence_of_all("MIT", PUBLIC_SETS[name].licence), [one]) for one in each)


def test_a_row_under_several_names_each_once() -> None:
    assert records.licence_of_all("MIT", "MIT") == "MIT"
    assert records.licence_of_all("MIT", "ODC-BY-1.0; MIT", None) == "MIT; ODC-BY-1.0; unknown"
    assert records.is_under(None, ["unknown"])
    assert not records.is_under("CC-BY-NC-4.0", ["CC-BY-NC", "BY-NC*"])


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("models.smollm2.licence", {"models": {"smollm2": {"uri": "path:a", "licence": "A; B"}}}),
        ("domain.licence", {"domain": {"licence": "A; B"}}),
        ("mix.domains.old.licence", {"mix": {"domains": {"old": {"source": "a", "fraction": 0.1, "licence": "A; B"}}}}),
        ("rehearsal.sources.own.licence", {"rehearsal": {"sources": {"own": {"source": "path:a", "licence": "A; B"}}}}),
        ("mix.licences.forbid.0", {"mix": {"licences": {"forbid": ["A; B"]}}}),
    ],
)
def test_a_licence_that_would_be_read_as_two_is_one_line(
    key: str, change: dict[str, Any], default_params: dict[str, Any], tmp_path: Path
) -> None:
    for section, values in change.items():
        default_params[section] |= values
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(default_params), encoding="utf-8")
    with pytest.raises(UserError) as raised:
        settings.load(tmp_path / "params.yaml")
    line = "`; ` stands between the licences of a row; write one name, without it"
    assert str(raised.value) == f"{tmp_path / 'params.yaml'}: {key}: 'A; B': {line}"


def picked(member: str, borrowed: dict[str, str | None], written: tuple[str, ...] = ()) -> str:
    """The licence of one pick of a committee whose target is `asker`."""
    writers = {
        "asker": cleaning.Writer("Terms of the asker"),
        "near": cleaning.Writer("MIT"),
        "far": cleaning.Writer("CC0-1.0"),
    }
    row: dict[str, Any] = dict.fromkeys(records.SELECTED.names)
    row |= {"instruction_id": "i", "instruction": "Why?", "response_id": "r", "response": "So.", "status": "ok"}
    before: dict[str, Any] = dict.fromkeys(records.CONVERSATIONS.names)
    before |= {"instruction_id": "i", "text": "Why?", "status": "ok"}
    before["history"] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] if written else []
    before["written"] = [
        {"turn": 1, "role": role, "writer": writer}
        for role, writer in zip(("user", "assistant", "user"), written, strict=False)
    ]
    (found,) = cleaning.picked(
        pa.Table.from_pylist([row | {"member": member}], records.SELECTED),
        writers,
        pa.Table.from_pylist([before], records.CONVERSATIONS),
        "asker",
        borrowed,
    ).to_pylist()
    return str(found["licence"])


def test_who_asked_is_an_author_as_well() -> None:
    assert picked("near", {}) == "MIT; Terms of the asker"
    assert picked("asker", {}) == "Terms of the asker"
    assert picked("near", {}, ("asker", "far", "asker")) == "CC0-1.0; MIT; Terms of the asker"


def test_a_borrowed_instruction_has_its_own_licence_and_not_the_targets() -> None:
    assert picked("near", {"i": "ODC-BY-1.0", "j": "GPL-3.0"}) == "MIT; ODC-BY-1.0"
    assert picked("near", {"i": "MIT"}) == "MIT"
    assert picked("near", {"i": None}) == "MIT; unknown"
