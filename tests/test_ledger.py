"""The ledger answers a call that was ever made, keeps the first answer, and outlives its process."""

import json
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anamnesis.errors import UserError
from anamnesis.ledger import SCHEMA_VERSION, Answer, Ledger, Record, file_system_of, key_of

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
        ledger.put("aa", "m", "chat", Answer("first", "stop"), 0.1)
        ledger.put("aa", "m", "chat", Answer("second", "stop"), 0.1)
        answer = ledger.get("aa")
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
            ledger.put(f"{i:064x}", "m", "chat", Answer(str(i), "stop"), 0.0)
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
        assert all(ledger.get(f"{i:064x}") == Answer(str(i), "stop") for i in range(finished))


def _write_range(path: Path, start: int) -> None:
    with Ledger(path) as ledger:
        for i in range(start, start + 200, 5):
            some = [Record(f"{k:064x}", f"m{k % 3}", "chat", Answer(str(k), "stop"), 0.0) for k in range(i, i + 5)]
            ledger.put_many(some)


def test_several_processes_write_at_once(tmp_path: Path) -> None:
    """Each begins with a file that is not there, and writes what its neighbours write too."""
    context = multiprocessing.get_context("spawn")
    starts = (0, 100, 200, 300)
    processes = [context.Process(target=_write_range, args=(tmp_path / "l.sqlite", start)) for start in starts]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * len(starts)
    with Ledger(tmp_path / "l.sqlite") as ledger:
        assert {record.key: record.answer.text for record in ledger.records()} == {
            f"{k:064x}": str(k) for k in range(500)
        }
        assert all(record.model == f"m{int(record.key, 16) % 3}" for record in ledger.records())
        assert ledger.faults() == []


def test_a_new_file_is_opened_by_several_at_once(tmp_path: Path) -> None:
    """SQLite refuses, without waiting, whoever comes while another turns a new file to WAL: one time in sixty."""
    start = threading.Barrier(6)

    def opened(number: int) -> int:
        start.wait()
        with Ledger(tmp_path / f"{number}.sqlite") as ledger:
            return len(ledger)

    with ThreadPoolExecutor(6) as pool:
        for number in range(300):
            assert list(pool.map(opened, [number] * 6)) == [0] * 6


def test_a_model_may_be_dropped_beside_a_run_that_asks_it(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.sqlite") as running, Ledger(tmp_path / "l.sqlite") as beside:
        running.put_many(_many(3, "dropped"))
        assert beside.prune("dropped") == 3
        beside.put_many(_many(2, "another"))
        running.put_many(_many(9, "dropped")[5:])
        assert [record.model for record in running.records()] == ["another"] * 2 + ["dropped"] * 4
        assert running.faults() == []


def test_a_full_disk_is_one_line_and_costs_nothing_stored(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.sqlite") as ledger:
        ledger.put_many(_many(10))
        pages = ledger.execute("PRAGMA page_count")[0][0]
        ledger.execute(f"PRAGMA max_page_count={pages + 2}")
        with pytest.raises(UserError, match=r"disk is full.*free the disk"):
            ledger.put_many(_many(10_000))
        assert len(ledger) == 10
        ledger.execute("PRAGMA max_page_count=1000000")
        assert ledger.put_many(_many(10_000)) == 9_990


def test_the_file_is_private(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.sqlite"):
        assert (tmp_path / "l.sqlite").stat().st_mode & 0o077 == 0


def test_a_newer_schema_and_a_broken_file_are_one_line(tmp_path: Path) -> None:
    with Ledger(tmp_path / "new.sqlite") as ledger:
        ledger._db.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    with pytest.raises(UserError, match="update"):
        Ledger(tmp_path / "new.sqlite")
    (tmp_path / "broken.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(UserError, match="no ledger, or a damaged one"):
        Ledger(tmp_path / "broken.sqlite")


SCHEMA_1 = (
    "CREATE TABLE answers (key TEXT PRIMARY KEY, model TEXT NOT NULL, kind TEXT NOT NULL, answer TEXT NOT NULL,"
    " latency_s REAL, at REAL NOT NULL) WITHOUT ROWID"
)


def _ledger_of_schema_1(path: Path) -> dict[str, Answer]:
    answers = {f"{i:064x}": Answer(f"text {i}", "stop", i, 2 * i, {"1": -0.5}) for i in range(20)}
    with sqlite3.connect(path) as db:
        db.execute(SCHEMA_1)
        db.execute("PRAGMA user_version=1")
        for i, (key, answer) in enumerate(answers.items()):
            row = (key, f"m{i % 2}", "chat", json.dumps(vars(answer)), 0.5, float(i))
            db.execute("INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?)", row)
    db.close()
    return answers


def _open(path: Path) -> None:
    with Ledger(path) as ledger:
        assert len(ledger) == 20


def test_an_older_schema_is_brought_up_to_date_by_one_of_several_processes(tmp_path: Path) -> None:
    answers = _ledger_of_schema_1(tmp_path / "l.sqlite")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_open, args=(tmp_path / "l.sqlite",)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    with Ledger(tmp_path / "l.sqlite") as ledger:
        assert ledger.get_many(answers) == answers
        assert ledger.faults() == []
        lines = ledger.statistics()
    assert [(line["model"], line["calls"]) for line in lines] == [("m0", 10), ("m1", 10)]
    assert sum(line["prompt_tokens"] for line in lines) == sum(range(20))


def test_a_failed_update_leaves_the_old_file_as_it_was(tmp_path: Path) -> None:
    _ledger_of_schema_1(tmp_path / "l.sqlite")
    with sqlite3.connect(tmp_path / "l.sqlite") as db:
        db.execute("UPDATE answers SET key = 'no hex' WHERE at = 3")
    db.close()
    with pytest.raises(UserError):
        Ledger(tmp_path / "l.sqlite")
    with sqlite3.connect(tmp_path / "l.sqlite") as db:
        assert db.execute("PRAGMA user_version").fetchone() == (1,)
        assert db.execute("SELECT count(*) FROM answers").fetchone() == (20,)
    db.close()


def _many(count: int, model: str = "m") -> list[Record]:
    return [Record(f"{i:064x}", model, "chat", Answer(f"t{i}", "stop", 1, 2), 0.1, float(i)) for i in range(count)]


def test_many_at_once_are_one_transaction(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.sqlite") as ledger:
        assert ledger.put_many(_many(1200)) == 1200
        assert ledger.put_many(_many(1300)) == 100
        broken = [*_many(1400)[1300:], Record("no hex", "m", "chat", Answer("x", "stop"), 0.1)]
        with pytest.raises(ValueError, match="hex"):
            ledger.put_many(broken)
        keys = [record.key for record in _many(1400)]
        assert len(ledger) == 1300
        assert ledger.known(keys) == set(keys[:1300])
        assert ledger.get_many(keys) == {record.key: record.answer for record in _many(1300)}
        assert list(ledger.records()) == _many(1300)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/me/l.sqlite", "ext4"),
        ("/mnt/data set/l.sqlite", "nfs4"),
        ("/mnt/data set/fast/l.sqlite", "xfs"),
        ("/mnt/data/l.sqlite", "ext4"),
    ],
)
def test_the_file_system_of_a_path(path: str, kind: str, tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n"
        "2 1 0:50 / /mnt/data\\040set rw,relatime shared:2 - nfs4 server:/x rw\n"
        "3 2 8:2 / /mnt/data\\040set/fast rw - xfs /dev/sdb1 rw\n"
    )
    assert file_system_of(Path(path), mounts) == kind


def test_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"1 0 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 0:50 / {tmp_path.resolve()} rw - nfs4 server:/x rw\n")
    monkeypatch.setattr("anamnesis.ledger.MOUNTS", mounts)
    with pytest.raises(UserError, match=r"nfs4.*ANAMNESIS_LEDGER"):
        Ledger(tmp_path / "l.sqlite")
    assert not (tmp_path / "l.sqlite").exists()


def _command(ledger: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "anamnesis.ledger", *arguments],
        env=os.environ | {"ANAMNESIS_LEDGER": str(ledger)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_colleague_goes_on_with_an_exported_ledger(tmp_path: Path) -> None:
    mine, theirs, file = tmp_path / "mine.sqlite", tmp_path / "theirs.sqlite", tmp_path / "calls.parquet"
    with Ledger(mine) as ledger:
        ledger.put_many(_many(30))
    with Ledger(theirs) as ledger:
        ledger.put_many(_many(5, "other"))  # theirs came first and stays
    assert _command(mine, "export", str(file)).stdout == f"{file}: 30 calls\n"
    assert _command(theirs, "import", str(file)).stdout == f"{file}: 30 calls, 25 of them new\n"
    assert _command(theirs, "import", str(file)).stdout == f"{file}: 30 calls, 0 of them new\n"
    with Ledger(theirs) as ledger:
        assert list(ledger.records())[5:] == _many(30)[5:]
        assert {record.model for record in list(ledger.records())[:5]} == {"other"}
    shown = _command(theirs, "stats").stdout
    assert "m chat: 25 calls, 25 tokens in, 50 out" in shown
    assert "other chat: 5 calls" in shown
    assert "30 calls" in shown.splitlines()[-1]


def test_one_model_can_be_dropped(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.sqlite") as ledger:
        ledger.put_many([*_many(4, "old"), *_many(9, "new")[4:]])
    unknown = _command(tmp_path / "l.sqlite", "prune", "nobody")
    assert unknown.returncode == 2
    assert "known: new, old" in unknown.stderr
    asked = _command(tmp_path / "l.sqlite", "prune", "old")
    assert (asked.returncode, asked.stdout) == (2, "")
    assert "old: 4 calls" in asked.stderr
    assert "--yes" in asked.stderr
    assert _command(tmp_path / "l.sqlite", "prune", "old", "--yes").stdout == "old: 4 calls deleted\n"
    nothing = _command(tmp_path / "l.sqlite", "prune-batches", "new")
    assert nothing.returncode == 2
    assert "no open batches" in nothing.stderr
    with Ledger(tmp_path / "l.sqlite") as ledger:
        assert {record.model for record in ledger.records()} == {"new"}
        assert ledger.faults() == []


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("INSERT INTO answers SELECT x'00', 99, kind, answer, 0, 0, 0, 0 FROM answers LIMIT 1", "orphan rows"),
        ("UPDATE answers SET key = x'00' WHERE rowid = 1", "no sha256"),
        ("UPDATE answers SET answer = '{\"text' WHERE rowid = 1", "no JSON object"),
    ],
)
def test_verify_finds_damage(damage: str, words: str, tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.sqlite") as ledger:
        ledger.put_many(_many(3))
    assert _command(tmp_path / "l.sqlite", "verify").stdout.endswith("sound, 3 calls\n")
    with sqlite3.connect(tmp_path / "l.sqlite") as db:
        db.execute(damage)
    db.close()
    found = _command(tmp_path / "l.sqlite", "verify")
    assert found.returncode == 2
    assert words in found.stderr
    assert len(found.stderr.splitlines()) == 1


def test_verify_finds_a_file_that_was_written_over(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    with Ledger(path) as ledger:
        ledger.put_many(_many(3000))
    whole = path.read_bytes()
    for place in (len(whole) // 3, len(whole) // 2, len(whole) - 8192):
        path.write_bytes(whole[:place] + b"\xa5" * 4096 + whole[place + 4096 :])
        found = _command(path, "verify")
        assert found.returncode == 2, found.stderr
        assert len(found.stderr.splitlines()) == 1
        assert str(path) in found.stderr
    path.write_bytes(whole)
    assert _command(path, "verify").returncode == 0


def test_what_is_no_export_is_one_line(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1]}), tmp_path / "x.parquet")
    (tmp_path / "y.parquet").write_bytes(b"PAR1 not really")
    for name in ("x.parquet", "y.parquet", "z.parquet"):
        found = _command(tmp_path / "l.sqlite", "import", str(tmp_path / name))
        assert found.returncode == 2
        assert name in found.stderr
        assert len(found.stderr.splitlines()) == 1
    missing = _command(tmp_path / "nowhere.sqlite", "stats")
    assert missing.returncode == 2
    assert "not found" in missing.stderr
