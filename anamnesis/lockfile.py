"""What a file was made with, as dvc.lock has it: the params of the stage that made it and of all stages before it.

In: dvc.lock and params.yaml as plain dicts. Out: the first thing that is not as it was, or None.
"""

from collections.abc import Iterator, Mapping
from typing import Any

Stages = Mapping[str, Mapping[str, Any]]  # by name, as below `stages` in dvc.lock

_MISSING = object()


def changed(stages: Stages, stage: str, params: Mapping[str, Any]) -> str | None:
    """What changed since a stage ran: a key of params.yaml, or a file that was made anew by another stage.

    Keys only, no values: an address may hold a password. Code is not looked at.
    """
    for name in _upstream(stages, stage):
        for key, then in stages[name].get("params", {}).get("params.yaml", {}).items():
            now = _at(params, key)
            if now is _MISSING and "@" in name:
                continue  # of a model that is gone: the lock keeps its stages, and later ones have it in their params
            if (where := _difference(key, then, now)) is not None:
                return f"params.yaml: {where}"
        for dependency in stages[name].get("deps", ()):
            for maker in _makers(stages, dependency["path"]):
                for out in stages[maker].get("outs", ()):
                    if out["path"] == dependency["path"] and out.get("md5") != dependency.get("md5"):
                        return str(out["path"])
    return None


def _upstream(stages: Stages, stage: str) -> list[str]:
    """A stage and all that it hangs on, nearest first."""
    found = [stage]
    for name in found:  # grows while it is walked
        makers = (one for dependency in stages[name].get("deps", ()) for one in _makers(stages, dependency["path"]))
        found += dict.fromkeys(one for one in makers if one not in found)
    return found


def _makers(stages: Stages, path: str) -> Iterator[str]:
    """The stages that write a path, the folder it is in, or a part of it."""
    for name, stage in stages.items():
        outs = [out["path"] for out in stage.get("outs", ())]
        if any(f"{path}/".startswith(f"{out}/") or f"{out}/".startswith(f"{path}/") for out in outs):
            yield name


def _at(params: Mapping[str, Any], key: str) -> Any:
    value: Any = params
    for part in key.split("."):
        value = value.get(part, _MISSING) if isinstance(value, Mapping) else _MISSING
    return value


def _difference(key: str, then: Any, now: Any) -> str | None:
    """The innermost key whose value is another one, or None."""
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        inner = (
            _difference(f"{key}.{name}", then.get(name, _MISSING), now.get(name, _MISSING))
            for name in dict.fromkeys([*then, *now])
        )
        return next((where for where in inner if where is not None), None)
    return None if then == now and isinstance(then, bool) == isinstance(now, bool) else key
