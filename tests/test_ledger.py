"""The ledger answers a call that was ever made, keeps the first answer, and outlives its process."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anamnesis.errors import UserError
from anamnesis.ledger import SCHEMA_VERSION, Answer, Ledger, key_of

CALL = {"model": "sha256:1", "kind": "chat", "request": {"messages": [{"role": "user", "content": "hi"}]}}


def test_an_answer_is_there_after_reopening(tmp_path: Path) -> None:
    answer = Answer("hé\x00llo", "stop", 3, 4, {"1": -0.5}, None)
    with Ledger(tmp_path / "l.sqlite") as ledger:
        assert ledger.get(key_of(CALL)) is None
        ledger.put(key_of(CALL), "sha256:1", "chat", answer, 0.1)
    with Ledger(tmp_path / "l.sqlite") as ledger:
        assert ledger.get(key_of(CALL)) == answer
        assert len(ledger) == 1


def test_the_first_answer_stays(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.sqlite") as ledger:
        ledger.put("k", "m", "chat", Answer("first", "stop"), 0.1)
        ledger.put("k", "m", "chat", Answer("second", "stop"), 0.1)
        answer = ledger.get("k")
        assert answer is not None
        assert answer.text == "first"
        assert len(ledger) == 1


def test_the_key_does_not_depend_on_the_order_of_keys() -> None:
    assert key_of({"a": 1, "b": {"c": 2, "d": 3}}) == key_of({"b": {"d": 3, "c": 2}, "a": 1})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), JSON, max_size=3), st.dictionaries(st.text(), JSON, max_size=3))
def test_different_calls_have_different_keys(one: dict[str, object], other: dict[str, object]) -> None:
    canonical = [json.dumps(call, sort_keys=True, allow_nan=False) for call in (one, other)]  # 0 and False differ
    assert (key_of(one) == key_of(other)) == (canonical[0] == canonical[1])


@pytest.mark.parametrize(
    ("path", "value"),
    [("model", "sha256:2"), ("kind", "completion"), ("request", {"messages": []}), ("sample_index", 1)],
)
def test_every_part_of_a_call_is_in_its_key(path: str, value: object) -> None:
    assert key_of(CALL | {path: value}) != key_of(CALL)


def _write_until_killed(path: Path, told: Path) -> None:
    with Ledger(path) as ledger:
        for i in range(1_000_000):
            ledger.put(f"k{i}", "m", "chat", Answer(str(i), "stop"), 0.0)
            told.write_text(str(i), encoding="utf-8")


def test_kill_9_loses_no_finished_answer(tmp_path: Path) -> None:
    path, told = tmp_path / "l.sqlite", tmp_path / "told"
    process = multiprocessing.get_context("spawn").Process(target=_write_until_killed, args=(path, told))
    process.start()
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (told.exists() and int(told.read_text(encoding="utf-8") or 0) > 2):
        time.sleep(0.01)
    assert process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    finished = int(told.read_text(encoding="utf-8") or 3)  # killed while it was written: it had come to 3 at least
    with Ledger(path) as ledger:
        assert len(ledger) >= finished
        assert all(ledger.get(f"k{i}") == Answer(str(i), "stop") for i in range(finished))


def _write_range(path: Path, start: int) -> None:
    with Ledger(path) as ledger:
        for i in range(start, start + 200):
            ledger.put(f"k{i}", "m", "chat", Answer(str(i), "stop"), 0.0)


def test_two_processes_write_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_write_range, args=(tmp_path / "l.sqlite", start)) for start in (0, 100)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    with Ledger(tmp_path / "l.sqlite") as ledger:
        assert len(ledger) == 300


def test_the_file_is_private(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.sqlite"):
        assert (tmp_path / "l.sqlite").stat().st_mode & 0o077 == 0


def test_a_newer_schema_and_a_broken_file_are_one_line(tmp_path: Path) -> None:
    with Ledger(tmp_path / "new.sqlite") as ledger:
        ledger._db.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    with pytest.raises(UserError, match="update"):
        Ledger(tmp_path / "new.sqlite")
    (tmp_path / "broken.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(UserError, match="ANAMNESIS_LEDGER"):
        Ledger(tmp_path / "broken.sqlite")
