"""The documented exit codes are the ones in the code."""

import re
from pathlib import Path

import pytest

from anamnesis import errors

ROOT = Path(__file__).resolve().parent.parent


def test_the_table_lists_every_code() -> None:
    table = (ROOT / "docs/exit-codes.md").read_text(encoding="utf-8")
    documented = {name: int(code) for code, name in re.findall(r"^\| (\d+) \| `(\w+)` \|", table, re.M)}
    assert documented == {
        name: value for name, value in vars(errors).items() if name.isupper() and not name.startswith("_")
    }


def test_a_users_mistake_is_one_line_and_a_defect_keeps_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def mistake() -> None:
        raise errors.UserError("params.yaml: seed: missing key", errors.POOL_TOO_SMALL)

    def interrupt() -> None:
        raise KeyboardInterrupt

    def defect() -> None:
        raise ZeroDivisionError

    with pytest.raises(SystemExit) as ended:
        errors.run(mistake)
    assert ended.value.code == errors.POOL_TOO_SMALL
    assert capsys.readouterr().err == "error: params.yaml: seed: missing key\n"
    with pytest.raises(SystemExit) as ended:
        errors.run(interrupt)
    assert ended.value.code == errors.INTERRUPTED
    with pytest.raises(ZeroDivisionError):
        errors.run(defect)
