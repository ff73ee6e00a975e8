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
from anamnesis.errors import FORBIDDEN_LICENCE, POOL_TOO_SMALL, UserError
from anamnesis.params import Params
from anamnesis.shares import share
from stages import mix

MIX = sql.statement(Path(__file__).parent.parent / "stages" / "sql" / "mix.sql")
FRACTIONS = st.decimals(0, 1, places=2).map(float)


def domain_rows(count: int, source: str = "domain", words: int = 1) -> pa.Table:
    rows = []
    for place in range(count):
        row_id = records.digest("domain row", source, place)
        answer = " ".join(["a"] * (words - 1) + [f"a{place}"])
        messages = [{"role": "user", "content": f"q{place}"}, {"role": "assistant", "content": answer}]
        rows.append({"row_id": row_id, "order_id": row_id, "messages": messages, "source": source, "licence": "CC0"})
    return pa.Table.from_pylist([{**row, "status": "ok"} for row in rows], records.CLEANED)


def cleaned_rows(count: int, dropped: int = 3, member: str = "alpha") -> pa.Table:
    rows: list[dict[str, Any]] = []
    for place in range(count + dropped):
        messages = [{"role": "user", "content": f"ask {place}"}, {"role": "assistant", "content": f"say {place}"}]
        row = {"row_id": records.digest(member, place), "order_id": f"i{place}", "messages": messages}
        row |= {"source": "reconstructed", "member": member, "licence": "MIT", "status": "ok"}
        if place >= count:
            row |= {"status": "refused", "reason": "refused"}
        rows.append(row)
    return pa.Table.from_pylist(rows, records.CLEANED)


def count_tokens(messages: Sequence[dict[str, str]]) -> int:
    return sum(len(message["content"].split()) for message in messages)


def mixed(
    domain: pa.Table,
    cleaned: pa.Table | None,
    total: int,
    fraction: float | dict[str, float],
    seed: int = 17,
    unit: str = "examples",
    threads: int = 0,
) -> pa.Table:
    fractions = fraction if isinstance(fraction, dict) else {"domain": fraction}
    return mixing.mix_variant(
        MIX,
        domain,
        cleaned,
        total=total,
        fractions=fractions,
        seed=seed,
        count_tokens=count_tokens,
        unit=unit,
        threads=threads,
    )


def check_pools(
    total: int, fraction: float, domain: int, rehearsal: dict[str, int | None], instructions: int, train: int
) -> None:
    """The pools of one domain, and of rehearsal rows by variant (None: no rehearsal)."""
    pools = {
        f"variants.{name}": {"domain": domain} | ({} if have is None else {"rehearsal": have})
        for name, have in rehearsal.items()
    }
    mixing.check_pools(total, {name: {"domain": fraction} for name in pools}, pools, instructions, train)


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
            check_pools(total, fraction, domain, rehearsal, 50, 40)
        assert raised.value.code == POOL_TOO_SMALL
        return
    check_pools(total, fraction, domain, rehearsal, 50, 40)
    rows = mixed(domain_rows(domain), cleaned_rows(kept) if rehearses else None, total, fraction).to_pylist()
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
        check_pools(total, fraction, domain, rehearsal, instructions, train)
        return
    except UserError as error:
        line = str(error)
    if lower := re.search(r"lower mix\.total to (\d+)", line):
        fitting = int(lower[1])
        assert 0 < fitting < total
        check_pools(fitting, fraction, domain, rehearsal, instructions, train)  # fits all of them
        with pytest.raises(UserError):  # and is the largest that does
            check_pools(fitting + 1, fraction, domain, rehearsal, instructions, train)
    if rows := re.search(r"raise domain\.train from \d+ to (\d+)", line):
        plenty = {name: have if have is None else total for name, have in rehearsal.items()}
        check_pools(total, fraction, int(rows[1]), plenty, instructions, train)
        with pytest.raises(UserError):
            check_pools(total, fraction, int(rows[1]) - 1, plenty, instructions, train)
    if about := re.search(r"variants\.(\w+): .* probe\.instructions from \d+ to about (\d+)", line):
        have = rehearsal[about[1]]
        assert have is not None
        more = have * int(about[2]) // instructions  # the same yield
        check_pools(total, fraction, total, {about[1]: more}, instructions, train)


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
        "metrics/select.json and metrics/clean.json say why every row was dropped",
    ),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_error_says_what_to_change(name: str) -> None:
    arguments, line = EXPECTED[name]
    with pytest.raises(UserError) as raised:
        check_pools(*arguments)
    assert str(raised.value) == line
    assert raised.value.code == POOL_TOO_SMALL


def test_a_smaller_mix_is_a_subset_of_a_larger_one() -> None:
    domain, selected = domain_rows(50), cleaned_rows(60)
    small, large = (
        {row["row_id"]: row for row in mixed(domain, selected, total, 0.3).to_pylist()} for total in (20, 60)
    )
    assert small.items() <= large.items()
    more = {row["row_id"] for row in mixed(domain, selected, 60, 0.5).to_pylist() if row["source"] == "domain"}
    assert {key for key, row in large.items() if row["source"] == "domain"} < more


def test_variants_rehearse_the_same_instructions() -> None:
    asked = [
        {row["messages"][-2]["content"] for row in mixed(domain_rows(9), table, 20, 0.2).to_pylist() if row["member"]}
        for table in (cleaned_rows(40, member="alpha"), cleaned_rows(40, member="beta"))
    ]
    assert asked[0] == asked[1]


def test_row_order_and_threads_change_nothing_and_the_seed_does() -> None:
    domain, selected = domain_rows(50), cleaned_rows(60)
    first = mixed(domain, selected, 40, 0.3)
    assert mixed(domain.take(list(range(49, -1, -1))), selected.take(list(range(62, -1, -1))), 40, 0.3) == first
    assert mixed(domain, selected, 40, 0.3, seed=18) != first
    for threads in (1, 2, 4):
        assert mixed(domain, selected, 40, 0.3, threads=threads) == first


def test_counts_add_up() -> None:
    table = mixed(domain_rows(10), cleaned_rows(20), 20, 0.25)
    counts = mixing.counts(table)
    assert counts["rows.domain"] == 5
    assert counts["rows.rehearsal"] == 15
    assert counts["tokens.domain"] == 2 * 5  # q1, a1
    assert counts["tokens.rehearsal"] == 4 * 15  # ask 1, say 1
    assert counts["domain_share.rows"] == 0.25
    assert counts["domain_share.tokens"] == round(10 / 70, 6)


TWO = {"domain": 0.2, "domain:old": 0.1}


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 500), st.lists(st.integers(0, 33).map(lambda n: n / 100), min_size=1, max_size=3), st.booleans())
def test_parts_add_up_and_none_is_more_than_one_off(total: int, shares: list[float], rehearses: bool) -> None:
    fractions = {f"domain:{i}" if i else "domain": fraction for i, fraction in enumerate(shares)}
    parts = mixing.needs(total, fractions, rehearses)
    assert sum(parts.values()) == total
    whole = 1.0 if rehearses else sum(shares)
    for part, fraction in fractions.items() if whole else ():
        assert abs(parts[part] - total * fraction / whole) <= 1 + 1e-6


def test_several_domains() -> None:
    domain = pa.concat_tables([domain_rows(50), domain_rows(50, "domain:old")])
    counts = mixing.counts(mixed(domain, cleaned_rows(60), 40, TWO))
    assert (counts["rows.domain"], counts["rows.domain:old"], counts["rows.rehearsal"]) == (8, 4, 28)
    assert counts["domain_share.rows"] == 0.3
    alone = mixing.counts(mixed(domain, None, 40, TWO))  # in proportion where nothing is rehearsed
    assert (alone["rows.domain"], alone["rows.domain:old"], alone["rows.rehearsal"]) == (27, 13, 0)


def test_another_domain_that_is_too_small_is_named() -> None:
    pools = {"variants.committee": {"domain": 50, "domain:old": 3, "rehearsal": 60}}
    with pytest.raises(UserError) as raised:
        mixing.check_pools(40, {"variants.committee": TWO}, pools, 60, 50)
    assert str(raised.value) == (
        "variants.committee: 4 rows of mix.domains.old are needed (mix.total 40 x 0.1) and 3 are there; "
        "lower mix.total to 38 or add rows"
    )


def test_advice_for_a_variant_with_a_rehearsal_source() -> None:
    pools = {"ultrachat": {"domain": 50, "rehearsal": 10}}
    with pytest.raises(UserError, match=r"raise rehearsal\.rows from 20 to about 40"):
        mixing.check_pools(25, {"ultrachat": {"domain": 0.2}}, pools, 60, 50, {"ultrachat": ("rehearsal.rows", 20)})


@settings(max_examples=60, deadline=None)
@given(st.integers(300, 900), st.integers(0, 60).map(lambda n: n / 100), st.booleans(), st.integers(0, 3))
def test_tokens_are_within_the_tolerance_and_equal_over_variants(
    total: int, fraction: float, rehearses: bool, seed: int
) -> None:
    domain, cleaned = domain_rows(200, words=6), cleaned_rows(400)
    table = mixed(domain, cleaned if rehearses else None, total, fraction, seed, unit="tokens")
    counts = mixing.counts(table)
    share_of_domain = fraction if rehearses else 1.0
    assert abs(sum(table["tokens"].to_pylist()) - total) <= mixing.TOLERANCE * total
    assert abs(counts["tokens.domain"] - total * share_of_domain) <= mixing.TOLERANCE * total + 1
    assert len(set(table["row_id"].to_pylist())) == table.num_rows
    again = mixed(
        domain.take(list(range(199, -1, -1))), cleaned if rehearses else None, total, fraction, seed, unit="tokens"
    )
    assert again == table


@pytest.mark.parametrize(
    ("rows", "words", "total", "line"),
    [
        (10, 6, 800, "800 of 800 tokens are due from the domain rows, and 70 are there; lower"),
        (10, 300, 400, "raise mix.total: they are too long for it"),
    ],
)
def test_tokens_that_no_rows_come_near(rows: int, words: int, total: int, line: str) -> None:
    with pytest.raises(UserError) as raised:
        mixed(domain_rows(rows, words=words), None, total, 1.0, unit="tokens")
    assert line in str(raised.value)
    assert raised.value.code == POOL_TOO_SMALL


def test_a_forbidden_licence_names_its_sources() -> None:
    rows = cleaned_rows(4).to_pylist()
    rows[0] |= {"source": "ultrachat", "member": None, "licence": "CC-BY-NC-4.0"}
    rows[1] |= {"licence": "cc-by-nc-sa-4.0"}
    rows[2] |= {"source": "own", "member": None, "licence": None}
    rows[4] |= {"source": "dropped", "member": None, "licence": "CC-BY-NC-4.0"}
    pools = {"the domain": domain_rows(3), "variants.committee": pa.Table.from_pylist(rows, records.CLEANED)}
    mixing.check_licences(pools, [])
    mixing.check_licences(pools, ["CC-BY-NC", "GPL*"])  # a whole name, or a pattern
    with pytest.raises(UserError) as raised:
        mixing.check_licences(pools, ["CC-BY-NC*", "Unknown"])
    assert raised.value.code == FORBIDDEN_LICENCE
    assert str(raised.value) == (
        "mix.licences.forbid: ultrachat (CC-BY-NC-4.0, 1 rows of variants.committee); "
        "reconstructed by alpha (cc-by-nc-sa-4.0, 1 rows of variants.committee); "
        "own (unknown, 1 rows of variants.committee); leave these sources out, or take the licence off the list"
    )


def test_a_row_under_several_licences_is_under_each() -> None:
    both = cleaned_rows(1, 0)
    both = both.set_column(both.schema.get_field_index("licence"), "licence", pa.array(["Apache-2.0; CC-BY-NC-4.0"]))
    mixing.check_licences({"variants.v": both}, ["BY-NC*"])
    with pytest.raises(UserError, match=r"\(Apache-2.0; CC-BY-NC-4.0, 1 rows of variants.v\)"):
        mixing.check_licences({"variants.v": both}, ["cc-by-nc*"])


def test_too_few_rows_of_a_source_name_its_own_key(default_params: dict[str, Any]) -> None:
    default_params["variants"] = {
        "wild": {"rehearsal": "wildchat"},
        "asked": {"rehearsal": "reconstructed", "instructions": "mine", "members": ["smollm2"], "rule": "first"},
        "committee": default_params["variants"]["committee"],
    }
    default_params["rehearsal"] |= {"rows": 12, "instructions": 14, "sources": {"mine": {"source": "path:x.jsonl"}}}
    knobs = mix.knobs(Params.model_validate(default_params))
    assert knobs == {"variants.wild": ("rehearsal.rows", 12), "variants.asked": ("rehearsal.instructions", 14)}
    pools = {"variants.wild": {"domain": 40, "rehearsal": 10}}
    with pytest.raises(UserError) as raised:
        mixing.check_pools(20, {"variants.wild": {"domain": 0.25}}, pools, 500, 40, knobs)
    assert str(raised.value) == (
        "variants.wild: 15 rehearsal rows are needed (mix.total 20 x (1 - 0.25)) and 10 are there; "
        "lower mix.total to 14 or raise rehearsal.rows from 12 to about 18"
    )


def test_no_domain_rows_at_all_is_the_end_of_pure_rehearsal() -> None:
    """At mix.domain_fraction 0 variants with rehearsal have none; a variant without is all domain, as ever."""
    pure = mixed(domain_rows(30), cleaned_rows(30), 20, 0)
    assert pure["source"].to_pylist() == ["reconstructed"] * 20
    assert mixed(domain_rows(30), None, 20, 0).num_rows == 20
    assert mixed(domain_rows(30), None, 20, 0).equals(mixed(domain_rows(30), None, 20, 0.5))
    mixing.check_pools(20, {"x": {"domain": 0.0}}, {"x": {"domain": 0, "rehearsal": 20}}, 30, 30)
    by_tokens = mixed(domain_rows(30), cleaned_rows(60), 100, 0, unit="tokens")
    assert set(by_tokens["source"].to_pylist()) == {"reconstructed"}
