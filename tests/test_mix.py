"""The mix is exact for every total and fraction that fits; where it doesn't, the numbers in the error do."""

import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anamnesis import mixing, records, sql
from anamnesis.errors import POOL_TOO_SMALL, UserError
from anamnesis.params import share

MIX = sql.statement(Path(__file__).parent.parent / "stages" / "sql" / "mix.sql")
WRITERS = {"alpha": mixing.Writer("MIT"), "beta": mixing.Writer("Apache-2.0", "Be brief.")}
FRACTIONS = st.decimals(0, 1, places=2).map(float)


def domain_rows(count: int) -> pa.Table:
    rows = []
    for place in range(count):
        row_id = records.digest("domain row", place)
        messages = [{"role": "user", "content": f"q{place}"}, {"role": "assistant", "content": f"a{place}"}]
        rows.append({"row_id": row_id, "messages": messages, "category": None, "source": "own", "licence": "CC0"})
    return pa.Table.from_pylist(rows, records.DOMAIN_TRAIN)


def selected_rows(count: int, dropped: int = 3, member: str = "alpha") -> pa.Table:
    rows: list[dict[str, Any]] = []
    for place in range(count + dropped):
        row: dict[str, Any] = dict.fromkeys(records.SELECTED.names)
        row |= {"instruction_id": f"i{place}", "instruction": f"ask {place}", "candidates": 0, "status": "filtered"}
        row["reason"] = "held out"
        if place < count:
            row |= {"response_id": records.digest(member, place), "member": member, "response": f"say {place}"}
            row |= {"candidates": 1, "status": "ok", "reason": None}
        rows.append(row)
    return pa.Table.from_pylist(rows, records.SELECTED)


def count_tokens(messages: Sequence[dict[str, str]]) -> int:
    return sum(len(message["content"].split()) for message in messages)


def mixed(domain: pa.Table, selected: pa.Table | None, total: int, fraction: float, seed: int = 17) -> pa.Table:
    return mixing.mix_variant(
        MIX, domain, selected, WRITERS, total=total, fraction=fraction, seed=seed, count_tokens=count_tokens
    )


@pytest.mark.parametrize(
    ("count", "fraction", "expected"),
    [(36, 0.17, 6), (10, 0.35, 4), (50, 0.29, 15), (10, 0.25, 3), (7, 0.0, 0), (7, 1.0, 7), (3, 1e-7, 0)],
)
def test_shares_are_rounded_half_up(count: int, fraction: float, expected: int) -> None:
    assert share(count, fraction) == expected


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), FRACTIONS, st.integers(0, 40), st.integers(0, 40), st.booleans())
def test_every_mix_is_exact_or_refused(total: int, fraction: float, domain: int, kept: int, rehearses: bool) -> None:
    exact = Fraction(str(fraction)) * total + Fraction(1, 2)
    learnt = exact.numerator // exact.denominator if rehearses else total
    rehearsal = {"v": kept if rehearses else None}
    if learnt > domain or total - learnt > kept * rehearses:
        with pytest.raises(UserError) as raised:
            mixing.check_pools(total, fraction, domain, rehearsal, 50, 40)
        assert raised.value.code == POOL_TOO_SMALL
        return
    mixing.check_pools(total, fraction, domain, rehearsal, 50, 40)
    rows = mixed(domain_rows(domain), selected_rows(kept) if rehearses else None, total, fraction).to_pylist()
    assert len({row["row_id"] for row in rows}) == len(rows) == total
    assert sum(row["source"] == "domain" for row in rows) == learnt
    assert all(row["licence"] == ("CC0" if row["source"] == "domain" else "MIT") for row in rows)
    assert all((row["member"] is None) == (row["source"] == "domain") for row in rows)


@settings(max_examples=300, deadline=None)
@given(
    st.integers(1, 300),
    FRACTIONS,
    st.integers(0, 200),
    st.dictionaries(st.sampled_from(["v1", "v2", "v3"]), st.none() | st.integers(0, 200), min_size=1),
)
def test_the_numbers_in_the_error_fit(
    total: int, fraction: float, domain: int, rehearsal: dict[str, int | None]
) -> None:
    instructions, train = 500, domain
    try:
        mixing.check_pools(total, fraction, domain, rehearsal, instructions, train)
        return
    except UserError as error:
        line = str(error)
    if lower := re.search(r"lower mix\.total to (\d+)", line):
        fitting = int(lower[1])
        assert 0 < fitting < total
        mixing.check_pools(fitting, fraction, domain, rehearsal, instructions, train)  # fits all of them
        with pytest.raises(UserError):  # and is the largest that does
            mixing.check_pools(fitting + 1, fraction, domain, rehearsal, instructions, train)
    if rows := re.search(r"raise domain\.train from \d+ to (\d+)", line):
        plenty = {name: have if have is None else total for name, have in rehearsal.items()}
        mixing.check_pools(total, fraction, int(rows[1]), plenty, instructions, train)
        with pytest.raises(UserError):
            mixing.check_pools(total, fraction, int(rows[1]) - 1, plenty, instructions, train)
    if about := re.search(r"variants\.(\w+): .* probe\.instructions from \d+ to about (\d+)", line):
        have = rehearsal[about[1]]
        assert have is not None
        more = have * int(about[2]) // instructions  # the same yield
        mixing.check_pools(total, fraction, total, {about[1]: more}, instructions, train)


EXPECTED = {
    "rehearsal": (
        (36, 0.17, 400, {"domain-only": None, "committee": 27}, 56, 400),
        "variants.committee: 30 rehearsal rows are needed (mix.total 36 x (1 - 0.17)) and 27 are there; "
        "lower mix.total to 33 or raise probe.instructions from 56 to about 63",
    ),
    "domain of a variant without rehearsal": (
        (36, 0.17, 20, {"committee": 40, "domain-only": None}, 56, 20),
        "variants.domain-only: 36 domain rows are needed (mix.total 36, rehearsal: none) and 20 are there; "
        "lower mix.total to 20 or raise domain.train from 20 to 36",
    ),
    "domain of a mix": (
        (36, 0.5, 10, {"committee": 40}, 56, 10),
        "variants.committee: 18 domain rows are needed (mix.total 36 x 0.5) and 10 are there; "
        "lower mix.total to 20 or raise domain.train from 10 to 18",
    ),
    "nothing selected": (
        (36, 0.17, 400, {"committee": 0}, 56, 400),
        "variants.committee: 30 rehearsal rows are needed (mix.total 36 x (1 - 0.17)) and 0 are there; "
        "metrics/select.json says why every instruction was dropped",
    ),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_error_says_what_to_change(name: str) -> None:
    arguments, line = EXPECTED[name]
    with pytest.raises(UserError) as raised:
        mixing.check_pools(*arguments)
    assert str(raised.value) == line
    assert raised.value.code == POOL_TOO_SMALL


def test_a_smaller_mix_is_a_subset_of_a_larger_one() -> None:
    domain, selected = domain_rows(50), selected_rows(60)
    small, large = (
        {row["row_id"]: row for row in mixed(domain, selected, total, 0.3).to_pylist()} for total in (20, 60)
    )
    assert small.items() <= large.items()
    more = {row["row_id"] for row in mixed(domain, selected, 60, 0.5).to_pylist() if row["source"] == "domain"}
    assert {key for key, row in large.items() if row["source"] == "domain"} < more


def test_a_rehearsal_row_keeps_its_writers_system_turn() -> None:
    for member, roles in (("alpha", ["user", "assistant"]), ("beta", ["system", "user", "assistant"])):
        rows = mixed(domain_rows(5), selected_rows(20, member=member), 10, 0.2).to_pylist()
        messages = [row["messages"] for row in rows if row["member"]]
        assert {tuple(turn["role"] for turn in one) for one in messages} == {tuple(roles)}
        assert all(one[0]["content"] == "Be brief." for one in messages if member == "beta")


def test_variants_rehearse_the_same_instructions() -> None:
    asked = [
        {row["messages"][-2]["content"] for row in mixed(domain_rows(9), table, 20, 0.2).to_pylist() if row["member"]}
        for table in (selected_rows(40, member="alpha"), selected_rows(40, member="beta"))
    ]
    assert asked[0] == asked[1]


def test_row_order_and_threads_change_nothing_and_the_seed_does() -> None:
    domain, selected = domain_rows(50), selected_rows(60)
    first = mixed(domain, selected, 40, 0.3)
    assert mixed(domain.take(list(range(49, -1, -1))), selected.take(list(range(62, -1, -1))), 40, 0.3) == first
    assert mixed(domain, selected, 40, 0.3, seed=18) != first
    for threads in (1, 2, 4):
        again = mixing.mix_variant(
            MIX,
            domain,
            selected,
            WRITERS,
            total=40,
            fraction=0.3,
            seed=17,
            count_tokens=count_tokens,
            threads=threads,
        )
        assert again == first


def test_counts_add_up() -> None:
    table = mixed(domain_rows(10), selected_rows(20), 20, 0.25)
    counts = mixing.counts(table)
    assert counts["rows.domain"] == 5
    assert counts["rows.rehearsal"] == 15
    assert counts["tokens.domain"] == 2 * 5  # q1, a1
    assert counts["tokens.rehearsal"] == 4 * 15  # ask 1, say 1
    assert counts["domain_share.rows"] == 0.25
    assert counts["domain_share.tokens"] == round(10 / 70, 6)


def drawn_rows(count: int, dropped: int = 2) -> pa.Table:
    rows = [
        {"row_id": records.digest("drawn", i), "source": "wildchat", "licence": "ODC-BY-1.0", "status": "ok",
         "messages": [{"role": "user", "content": f"real {i}"}, {"role": "assistant", "content": "yes"}]}
        for i in range(count)
    ]  # fmt: skip
    toxic = {"source": "wildchat", "licence": "ODC-BY-1.0", "status": "filtered", "reason": "toxic", "messages": None}
    rows += [toxic | {"row_id": records.digest("dropped", i)} for i in range(dropped)]
    return pa.Table.from_pylist(rows, records.REHEARSAL)


def test_rows_of_a_source_are_taken_as_they_are() -> None:
    def mix(total: int, seed: int = 17) -> list[dict[str, Any]]:
        return mixing.mix_variant(
            MIX, domain_rows(40), None, WRITERS, total=total, fraction=0.25, seed=seed, count_tokens=count_tokens,
            drawn=drawn_rows(30),
        ).to_pylist()  # fmt: skip

    rows = mix(20)
    theirs = [row for row in rows if row["source"] == "wildchat"]
    assert (len(rows), len(theirs)) == (20, 15)
    assert all(row["member"] is None and row["licence"] == "ODC-BY-1.0" for row in theirs)
    assert all(row["messages"][0]["content"].startswith("real ") for row in theirs)
    assert {row["row_id"] for row in mix(12)} < {row["row_id"] for row in rows}
    assert {row["row_id"] for row in mix(20, seed=18)} != {row["row_id"] for row in rows}


def test_too_few_rows_of_a_source_name_its_own_key() -> None:
    with pytest.raises(UserError) as raised:
        mixing.check_pools(20, 0.25, 40, {"wild": 10}, 500, 40, {"wild": ("rehearsal.rows", 12)})
    assert str(raised.value) == (
        "variants.wild: 15 rehearsal rows are needed (mix.total 20 x (1 - 0.25)) and 10 are there; "
        "lower mix.total to 14 or raise rehearsal.rows from 12 to about 18"
    )
