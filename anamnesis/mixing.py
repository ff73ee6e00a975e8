"""A variant's training set: domain rows and rehearsal rows, exact in number or close in tokens, never one twice.

In: the cleaned rows of the domains and of a variant's rehearsal, `mix.total` and the domains' fractions. Out: rows of
`records.MIXED`, or one line that says which pool is too small and which numbers would do.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from anamnesis import sql
from anamnesis.errors import FORBIDDEN_LICENCE, POOL_TOO_SMALL, UserError
from anamnesis.records import CLEANED, MIXED, is_under
from anamnesis.shares import DOMAIN, REHEARSAL, needs

Message = dict[str, str]
Rows = list[dict[str, Any]]
Count = Callable[[Sequence[Message]], int]  # the tokens of one conversation

TOLERANCE = 0.01  # of mix.total, in tokens
LOOK_AHEAD = 1000  # rows looked through for one that fits the tokens that are left
SWAPPED = 100
ALL = 2**62


def is_domain(source: str) -> bool:
    """Is this the source of domain rows?"""
    return source == DOMAIN or source.startswith(f"{DOMAIN}:")


def check_pools(
    total: int,
    fractions: Mapping[str, Mapping[str, float]],
    pools: Mapping[str, Mapping[str, int]],
    instructions: int,
    train: int,
    drawn: Mapping[str, tuple[str, int]] | None = None,
) -> None:
    """Raise `UserError` (exit code 6) for the first variant that the pools don't fill.

    `pools` has the rows, `fractions` the domains' shares, by variant (its key in params.yaml) and part; a variant that
    rehearses has the part `REHEARSAL`. `instructions` and `train` are probe.instructions and domain.train, for the
    advice; `drawn` has key and value of what to raise for a variant with a rehearsal source. The total it names fits
    every variant.
    """

    def needed(variant: str, size: int = total) -> dict[str, int]:
        return needs(size, fractions[variant], REHEARSAL in pools[variant])

    def fit(size: int) -> bool:
        return all(n <= pool.get(part, 0) for name, pool in pools.items() for part, n in needed(name, size).items())

    if fit(total):
        return
    fitting = next((size for size in range(total - 1, 0, -1) if fit(size)), 0)
    lower = [f"lower mix.total to {fitting}"] if fitting else []

    for variant, pool in pools.items():
        rehearses, shares = REHEARSAL in pool, fractions[variant]
        for part, count in needed(variant).items():
            have = pool.get(part, 0)
            if count <= have:
                continue
            if part == REHEARSAL:
                what, how = f"{count} rehearsal rows", f"mix.total {total} x (1 - {sum(shares.values()):g})"
                key, value = (drawn or {}).get(variant, ("probe.instructions", instructions))
                about = math.ceil(value * count / have) if have else 0
                fixes = [f"raise {key} from {value} to about {about}"] if have else []
            else:
                other = f"rows of mix.domains.{part.removeprefix(f'{DOMAIN}:')}"
                what = f"{count} {'domain rows' if part == DOMAIN else other}"
                how = f"mix.total {total} x {shares[part]:g}" if rehearses else f"mix.total {total}, rehearsal: none"
                most = max(needed(name).get(part, 0) for name in pools)
                fixes = [f"raise domain.train from {train} to {train + most - have}" if part == DOMAIN else "add rows"]
            advice = " or ".join(lower + fixes) or (
                "metrics/select.json and metrics/clean.json say why every row was dropped"
            )
            line = f"{variant}: {what} are needed ({how}) and {have} are there; {advice}"
            raise UserError(line, POOL_TOO_SMALL)


def check_licences(pools: Mapping[str, pa.Table], patterns: Sequence[str]) -> None:
    """Raise `UserError` (exit code 8) that names every source under a licence that one of `patterns` matches.

    `pools` has rows of `records.CLEANED` by the name of what they are for. What a pattern matches: `records.is_under`.
    """
    found: Counter[tuple[str, str, str]] = Counter()
    for name, table in pools.items():
        rows = table.filter(pc.equal(table["status"], "ok")).select(["source", "member", "licence"]).to_pylist()
        for row in rows:
            licence = row["licence"] or "unknown"
            if is_under(licence, patterns):
                source = row["source"] if row["member"] is None else f"{row['source']} by {row['member']}"
                found[source, licence, name] += 1
    if found:
        named = "; ".join(f"{source} ({licence}, {n} rows of {name})" for (source, licence, name), n in found.items())
        raise UserError(
            f"mix.licences.forbid: {named}; leave these sources out, or take the licence off the list",
            FORBIDDEN_LICENCE,
        )


def mix_variant(
    text: str,
    domain: pa.Table,
    cleaned: pa.Table | None,
    *,
    total: int,
    fractions: Mapping[str, float],
    seed: int,
    count_tokens: Count,
    unit: str = "examples",
    threads: int = 0,
) -> pa.Table:
    """`total` examples exactly, or tokens within `TOLERANCE`, as rows of `records.MIXED`.

    Both tables have rows of `records.CLEANED`; `cleaned` None means that the variant rehearses nothing. `count_tokens`
    measures one conversation. In examples the pools must have passed `check_pools`; in tokens this raises `UserError`
    where they don't fill.
    """
    parts = needs(total, fractions, cleaned is not None)
    limits = {"part": list(parts), "rows": list(parts.values()) if unit == "examples" else [ALL] * len(parts)}
    tables = {
        "domain": domain,
        "cleaned": cleaned if cleaned is not None else CLEANED.empty_table(),
        "limits": pa.table(limits, pa.schema([("part", pa.string()), ("rows", pa.int64())])),
    }
    pool = sql.run(text, tables, {"seed": seed}, threads)
    if unit == "examples":
        rows = [{**row, "tokens": count_tokens(row["messages"])} for row in pool.to_pylist()]
    else:
        rows = _fill(pool, parts, count_tokens)
    rows.sort(key=lambda row: (row["row_id"], row["source"]))
    return pa.Table.from_pylist(rows, MIXED)


def _fill(pool: pa.Table, parts: Mapping[str, int], count_tokens: Count) -> Rows:
    """Rows of each part in order, as near to its tokens as they come; a part makes up for what earlier ones missed."""
    total, chosen, due, reached = sum(parts.values()), [], 0, 0
    for part, tokens in parts.items():
        due += tokens
        if due == reached:
            continue
        of_part = pool.filter(pc.equal(pool["part"], part))
        found, seen_all = closest(of_part, due - reached, count_tokens)
        chosen += found
        reached += sum(row["tokens"] for row in found)
        if abs(due - reached) > TOLERANCE * total:
            there = f"{sum(row['tokens'] for row in found)} are there" if seen_all else "no rows come near that"
            advice = "lower mix.total or add rows" if seen_all else "raise mix.total: they are too long for it"
            line = f"mix.total: {tokens} of {total} tokens are due from the {part} rows, and {there}; {advice}"
            raise UserError(line, POOL_TOO_SMALL)
    return chosen


def closest(pool: pa.Table, target: int, count_tokens: Count) -> tuple[Rows, bool]:
    """Rows in order whose tokens come near `target`, and whether the pool has no more.

    Rows are taken while they fit; one that doesn't is passed over, for at most `LOOK_AHEAD` rows. Last, one of those is
    taken in addition, or in the place of one of the last `SWAPPED` taken, where that is nearer.
    """
    chosen: Rows = []
    passed: Rows = []
    left = target
    for batch in pool.to_batches(256):
        for row in batch.to_pylist():
            row["tokens"] = count_tokens(row["messages"])
            if row["tokens"] <= left:
                chosen.append(row)
                left -= row["tokens"]
            else:
                passed.append(row)
            if left == 0 or len(passed) >= LOOK_AHEAD:
                break
        else:
            continue
        break
    best, out, into = left, -1, None
    for row in passed:
        for place in range(max(0, len(chosen) - SWAPPED), len(chosen) + 1):
            given = chosen[place]["tokens"] if place < len(chosen) else 0
            if abs(left + given - row["tokens"]) < best:
                best, out, into = abs(left + given - row["tokens"]), place, row
    if into is not None:
        chosen[out : out + 1] = [into]
    return chosen, len(chosen) == pool.num_rows


def counts(mixed: pa.Table) -> dict[str, int | float]:
    """Rows and tokens of each domain and of rehearsal, and the domains' share of each, rounded to six digits."""
    rows: Counter[str] = Counter({DOMAIN: 0, REHEARSAL: 0})
    tokens: Counter[str] = Counter({DOMAIN: 0, REHEARSAL: 0})
    for source, length in zip(mixed["source"].to_pylist(), mixed["tokens"].to_pylist(), strict=True):
        part = source if is_domain(source) else REHEARSAL
        rows[part] += 1
        tokens[part] += length
    return {
        **{f"rows.{part}": count for part, count in sorted(rows.items())},
        **{f"tokens.{part}": count for part, count in sorted(tokens.items())},
        "domain_share.rows": _domain_share(rows),
        "domain_share.tokens": _domain_share(tokens),
    }


def _domain_share(counted: Counter[str]) -> float:
    return round(1 - counted[REHEARSAL] / max(1, counted.total()), 6)
