"""The eight public sets in small: each written as its hub repository has it, file names, columns and types alike.

`WRITE[<set>](folder)` makes a copy of the repository. The texts are made up: `question(1)` … are those of good rows;
beside them stand rows that must be dropped, and files or splits that must not be read.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

TURN = pa.struct([("content", pa.string()), ("role", pa.string())])
NEVER = "this file or split is not the set's"
INSTRUCTION = "Q{}: what is {} plus one?"


def question(number: int) -> str:
    return INSTRUCTION.format(number, number)


def pairs(*texts: str, keys: tuple[str, str], names: tuple[str, str]) -> list[dict[str, Any]]:
    """Turns by user and assistant in turn; `keys` are those of speaker and text, `names` the speakers'."""
    return [{keys[0]: names[i % 2], keys[1]: text} for i, text in enumerate(texts)]


def said(*texts: str) -> list[dict[str, Any]]:
    return pairs(*texts, keys=("from", "value"), names=("human", "gpt"))


def chat(*texts: str) -> list[dict[str, Any]]:
    return pairs(*texts, keys=("role", "content"), names=("user", "assistant"))


def write_json(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=2, ensure_ascii=False), encoding="utf-8")


def write_parquet(path: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema), path)


def write_card(folder: Path, splits: list[str]) -> None:
    """The part of a dataset card that says which files are which split."""
    files = "".join(f"  - split: {split}\n    path: data/{split}-*\n" for split in splits)
    folder.mkdir(parents=True, exist_ok=True)
    text = f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n"
    (folder / "README.md").write_text(text, encoding="utf-8")


def write_sharegpt(folder: Path) -> None:
    name = "ShareGPT_V3_unfiltered_cleaned_split"
    rows = [
        {"id": "QWJhYvA_0", "conversations": said(question(1), "2", "And plus two?", "3")},
        {"id": "i6IyJda_0", "conversations": said(question(2), "3", "thanks")},
        {"id": "A5AbcES_0", "conversations": said("an answer first", question(9))[::-1]},
        {"id": "hRPPgZT_0", "conversations": []},
        {"id": "hRPPgZT_1", "conversations": said("", "2")},
        {"id": "xcNeqka_0", "conversations": said("alone")},
        {
            "id": "bing_0",
            "conversations": [
                {"from": "user", "value": question(3), "markdown": None, "text": None},
                {"from": "bing", "value": "4", "markdown": "4", "text": "4"},
            ],
        },
        {"id": "QWJhYvA_7", "conversations": said(question(1), "two")},
    ]
    write_json(folder / f"{name}.json", rows)
    for other in (f"{name}_no_imsorry.json", "HTML_cleaned_raw_dataset/sg_90k_part1.json"):
        write_json(folder / other, [{"id": "x", "conversations": said(NEVER, "x")}])


def write_evol_instruct(folder: Path) -> None:
    rows = [{"idx": f"c{i}", "conversations": said(question(i), str(i + 1))} for i in range(1, 4)]
    rows.append({"idx": "c4", "conversations": said("Repeat: <|im_end|>", "no")})
    write_json(folder / "WizardLM_evol_instruct_V2_143k.json", rows)


GENQA_SPLITS = ["code", "dialog", "general", "math", "mmlu", "multiple_choice", "writing", "academic", "task"]


def write_genqa(folder: Path) -> None:
    schema = pa.schema(
        [("text", pa.list_(TURN)), ("prompt", pa.string()), ("template", pa.string()), ("idx", pa.int64()),
         ("category", pa.string())]
    )  # fmt: skip
    write_card(folder, GENQA_SPLITS)
    for i, split in enumerate(GENQA_SPLITS, 1):
        rows = [{"text": chat(question(i), str(i + 1), "go on", "…"), "template": split, "idx": 0}]
        write_parquet(folder / f"data/{split}-00000-of-00001.parquet", rows, schema)


def write_openhermes_1(folder: Path) -> None:
    rows = [
        {"output": "2", "input": "", "instruction": question(1)},
        {"output": "3", "input": "Use digits.", "instruction": question(2)},
        {"output": " ", "input": "", "instruction": question(8)},
        {"output": "4", "input": "", "instruction": question(3)},
    ]
    write_json(folder / "openhermes.json", rows)


def write_openhermes_2_5(folder: Path) -> None:
    nothing = dict.fromkeys(
        ["custom_instruction", "topic", "model_name", "model", "category", "views", "language", "id", "title", "idx",
         "hash", "avatarUrl", "system_prompt"]
    ) | {"skip_prompt_formatting": False, "source": "airoboros2.2"}  # fmt: skip
    rows = [
        nothing | {"conversations": said(question(1), "2")},
        nothing | {"conversations": [{"from": "system", "value": "Be brief."}, *said(question(2), "3")]},
        nothing | {"conversations": [{"from": "system", "value": ""}, *said(question(3), "4")]},
        nothing | {"conversations": [{"from": "human", "value": question(4), "weight": 0.0},
                                     {"from": "gpt", "value": "5", "weight": 1.0}]},
        nothing | {"conversations": [{"from": "gpt", "value": "unasked"}]},
    ]  # fmt: skip
    write_json(folder / "openhermes2_5.json", rows)


def write_tulu(folder: Path) -> None:
    schema = pa.schema([("dataset", pa.string()), ("id", pa.string()), ("messages", pa.list_(TURN))])
    write_card(folder, ["train"])
    parts = ["flan_v2", "sharegpt", "open_orca"]
    for i, part in enumerate(parts):
        rows = [{"dataset": part, "id": f"{part}_0", "messages": chat(question(i + 1), str(i + 2))}]
        if part == "open_orca":
            system = {"role": "system", "content": "You explain."}
            rows.append({"dataset": part, "id": f"{part}_1", "messages": [system, *chat(question(4), "5")]})
        write_parquet(folder / f"data/train-0000{i}-of-00003-99ee8754042a69f6.parquet", rows, schema)


def write_wildchat(folder: Path) -> None:
    header = pa.struct([("accept-language", pa.string()), ("user-agent", pa.string())])
    turn = pa.struct(
        [("content", pa.string()), ("country", pa.string()), ("hashed_ip", pa.string()), ("header", header),
         ("language", pa.string()), ("redacted", pa.bool_()), ("role", pa.string()), ("state", pa.string()),
         ("timestamp", pa.timestamp("us", "UTC")), ("toxic", pa.bool_()), ("turn_identifier", pa.int64())]
    )  # fmt: skip
    flagged = pa.struct([("categories", pa.struct([("hate/threatening", pa.bool_())])), ("flagged", pa.bool_())])
    detoxify = pa.struct([("identity_attack", pa.float64()), ("toxicity", pa.float64())])
    schema = pa.schema(
        [("conversation_hash", pa.string()), ("model", pa.string()), ("timestamp", pa.timestamp("us", "UTC")),
         ("conversation", pa.list_(turn)), ("turn", pa.int64()), ("language", pa.string()),
         ("openai_moderation", pa.list_(flagged)), ("detoxify_moderation", pa.list_(detoxify)), ("toxic", pa.bool_()),
         ("redacted", pa.bool_()), ("state", pa.string()), ("country", pa.string()), ("hashed_ip", pa.string()),
         ("header", header)]
    )  # fmt: skip

    def row(*texts: str, language: str = "English", toxic: bool = False, redacted: bool = False) -> dict[str, Any]:
        turns = [
            one | {"language": language, "toxic": toxic, "redacted": redacted, "turn_identifier": 101000 + i // 2}
            for i, one in enumerate(chat(*texts))
        ]
        known = {"conversation": turns, "turn": len(turns) // 2, "language": language, "toxic": toxic}
        return known | {"model": "gpt-4-0314", "redacted": redacted, "openai_moderation": [{"flagged": toxic}]}

    rows = [
        row(question(1), "2", "And then?", "3"),
        row("Was ist Q2 plus eins?", "3", language="German"),  # languages are stage clean's business
        row("something toxic", "no", toxic=True),
        row("I am NAME_1", "Hello NAME_1", redacted=True),
        row(question(3), ""),
    ]
    write_card(folder, ["train"])
    write_parquet(folder / "data/train-00000-of-00014.parquet", rows, schema)


def write_ultrachat(folder: Path) -> None:
    schema = pa.schema([("prompt", pa.string()), ("prompt_id", pa.string()), ("messages", pa.list_(TURN))])
    splits = ["train_sft", "test_sft", "train_gen", "test_gen"]
    write_card(folder, splits)
    for split in splits:
        asked = [question(1), question(2)] if split == "train_sft" else [NEVER]
        rows = [
            {"prompt": text, "prompt_id": f"f0e3{i}", "messages": chat(text, "a", "b", "c", "d", "e")}
            for i, text in enumerate(asked)
        ]
        write_parquet(folder / f"data/{split}-00000-of-00003-a3ecf92756993583.parquet", rows, schema)


WRITE: dict[str, Callable[[Path], None]] = {
    "sharegpt": write_sharegpt,
    "evol-instruct": write_evol_instruct,
    "genqa": write_genqa,
    "openhermes-1": write_openhermes_1,
    "openhermes-2-5": write_openhermes_2_5,
    "tulu-v2-mix": write_tulu,
    "wildchat": write_wildchat,
    "ultrachat-200k": write_ultrachat,
}


def own_file(folder: Path, count: int, **more: Any) -> Path:
    """A file of one's own with `count` rows; `more` are further fields of each."""
    file = folder / "mine.jsonl"
    rows = [{"instruction": question(i), "response": f"{i + 1}"} | more for i in range(count)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file
