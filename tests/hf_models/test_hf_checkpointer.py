"""Directories read and written: against transformers and peft, and with damaged files."""

import contextlib
import json
import resource
import signal
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torchtune.training import ADAPTER_CONFIG, ADAPTER_KEY, MODEL_KEY
from transformers import AutoModelForCausalLM

from hf_models import (
    HFCheckpointer,
    atomic_directory,
    decoder,
    lora_decoder,
    merged_state_dict,
    save_pretrained,
)

FAMILIES = ["llama", "qwen2", "qwen3"]
COMPANIONS = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "LICENSE.txt"]


@pytest.fixture
def save(tmp_path):
    """Saves a model through the checkpointer; returns the directory."""

    def save(directory, model, **options):
        merged, adapter, adapter_config = merged_state_dict(model)
        state = {MODEL_KEY: merged}
        if adapter:
            state |= {ADAPTER_KEY: adapter, ADAPTER_CONFIG: adapter_config}
        checkpointer = HFCheckpointer(directory, output_dir=tmp_path / "out", **options)
        checkpointer.save_checkpoint(state, epoch=0)
        return tmp_path / "out" / "epoch_0"

    return save


def from_transformers(directory):
    """transformers' model, whose weights all came from the directory."""
    model, info = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def edit_tensors(path, edit):
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
@torch.no_grad()
def test_saved_model_is_the_same_in_transformers(make_hf, load, save, tokens, family, tied):
    directory, reference = make_hf(family, tie_word_embeddings=tied)
    saved = save(directory, load(decoder, directory))
    assert load_file(saved / "model.safetensors").keys() == (
        load_file(directory / "model.safetensors").keys()
    )
    assert torch.equal(from_transformers(saved)(tokens).logits, reference(tokens).logits)


@torch.no_grad()
def test_sharded_saving_and_loading(make_hf, load, save, tokens):
    directory, reference = make_hf("qwen3")
    saved = save(directory, load(decoder, directory), max_shard_size="20KB")
    shards = sorted(saved.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert all(path.stat().st_size < 22_000 for path in shards)
    assert torch.equal(from_transformers(saved)(tokens).logits, reference(tokens).logits)
    reloaded = load(decoder, saved)
    torch.testing.assert_close(reloaded(tokens), reference(tokens).logits, atol=1e-5, rtol=1e-5)
    # the same by naming the files
    named = HFCheckpointer(saved, [path.name for path in shards]).load_checkpoint()[MODEL_KEY]
    assert named.keys() == reloaded.state_dict().keys()


def test_loading_maps_the_file_and_never_writes_to_it(make_hf):
    directory, _ = make_hf("llama")
    before = (directory / "model.safetensors").read_bytes()
    weights = HFCheckpointer(directory).load_checkpoint()[MODEL_KEY]
    assert str(directory / "model.safetensors") in Path("/proc/self/maps").read_text()
    weights["norm.scale"].zero_()
    assert (directory / "model.safetensors").read_bytes() == before


def test_config_and_companions_come_along(make_hf, load, save):
    directory, _ = make_hf("llama", tie_word_embeddings=True)
    for name in COMPANIONS:
        (directory / name).write_text(name)
    (directory / "adapter_config.json").write_text("{}")
    (directory / "optimizer.pt").write_text("")
    config = json.loads((directory / "config.json").read_text()) | {"note": "kept"}
    del config["dtype"]
    config["torch_dtype"] = "float32"
    (directory / "config.json").write_text(json.dumps(config))

    saved = save(directory, load(decoder, directory).bfloat16())

    names = {"config.json", "generation_config.json", "model.safetensors", *COMPANIONS}
    assert {path.name for path in saved.iterdir()} == names
    assert all((saved / name).read_text() == name for name in COMPANIONS)
    assert json.loads((saved / "config.json").read_text()) == config | {"torch_dtype": "bfloat16"}
    assert from_transformers(saved).dtype == torch.bfloat16


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_merged_and_adapter_equal_the_live_model(
    make_hf, load, save, tokens, randomize_lora, family
):
    directory, reference = make_hf(family)
    places = ["q_proj", "k_proj", "v_proj", "output_proj"]
    model = load(lora_decoder, directory, places, True, True, lora_rank=3, lora_alpha=7)
    randomize_lora(model)
    logits = model(tokens)
    assert not torch.allclose(logits, reference(tokens).logits, atol=0.1)

    saved = save(directory, model)

    assert torch.equal(model(tokens), logits)
    close = {"atol": 5e-5, "rtol": 1e-4}
    torch.testing.assert_close(from_transformers(saved)(tokens).logits, logits, **close)
    assert not list(saved.glob("adapter*.*"))
    adapted = PeftModel.from_pretrained(from_transformers(directory), saved / "adapter").eval()
    torch.testing.assert_close(adapted(tokens).logits, logits, **close)


@pytest.mark.parametrize(
    ("here", "given", "named"),
    [
        (".", "{directory}", "{name}"),
        ("elsewhere", "{directory}", None),
        ("elsewhere", "../{name}", "../{name}"),
    ],
)
def test_the_adapters_base_is_relative_or_unnamed(
    make_hf, load, save, monkeypatch, here, given, named
):
    directory, _ = make_hf("llama")
    model = load(lora_decoder, directory, ["q_proj"])
    (directory.parent / "elsewhere").mkdir()
    monkeypatch.chdir(directory.parent / here)
    words = {"directory": directory, "name": directory.name}
    saved = save(given.format(**words), model)
    config = json.loads((saved / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == (named and named.format(**words))


def test_adapter_only(make_hf, load, randomize_lora, tmp_path):
    directory, _ = make_hf("llama")
    model = load(lora_decoder, directory, ["q_proj"])
    _, adapter, config = merged_state_dict(model)
    checkpointer = HFCheckpointer(directory, output_dir=tmp_path / "out")
    state = {ADAPTER_KEY: adapter, ADAPTER_CONFIG: config}
    checkpointer.save_checkpoint(state, epoch=2, adapter_only=True)
    files = {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert files == {"adapter_config.json", "adapter_model.safetensors"}
    with pytest.raises(ValueError, match="no adapter"):
        checkpointer.save_checkpoint({MODEL_KEY: {}}, epoch=3, adapter_only=True)


@pytest.mark.parametrize("path", ["/srv/models/x", "/model"])
def test_settings_that_are_absolute_paths_are_left_out(make_hf, load, save, path):
    directory, _ = make_hf("llama")
    settings = {"name_or_path": path, "tokenizer_file": path, "unk_token": "/", "pad_token": "</s>",
                "auto": {"name": "org/model"}, "source": "org/model"}  # fmt: skip
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (directory / name).write_text(json.dumps(settings))
    (directory / "generation_config.json").write_text('{"_from_model_config": true,  "top_k": 5}')
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"_name_or_path": path}))
    saved = save(directory, load(decoder, directory))
    kept = {key: value for key, value in settings.items() if value != path}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        assert json.loads((saved / name).read_text()) == kept
    assert "_name_or_path" not in json.loads((saved / "config.json").read_text())
    same = [(folder / "generation_config.json").read_bytes() for folder in (directory, saved)]
    assert same[0] == same[1], "a file without paths is copied as it is"


def test_dirname_names_the_directory(make_hf, load, tmp_path):
    directory, _ = make_hf("llama")
    state = HFCheckpointer(directory).load_checkpoint()
    HFCheckpointer(directory, output_dir=tmp_path).save_checkpoint(state, 0, dirname="best")
    HFCheckpointer(tmp_path / "best").check()
    with pytest.raises(ValueError, match="output_dir"):
        HFCheckpointer(directory).save_checkpoint(state, 0)


def remove(name):
    return lambda tensors: tensors.pop(name)


def put(name, tensor):
    return lambda tensors: tensors.update({name: tensor})


NORM = "model.layers.1.input_layernorm.weight"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (remove(NORM), f"tensor {NORM} is missing"),
        (remove("lm_head.weight"), "tensor lm_head.weight is missing"),
        (put("model.extra.weight", torch.ones(1)), "unexpected tensor model.extra.weight"),
        (put("model.layers.3.mlp.up_proj.weight", torch.ones(1)), "unexpected tensor model.layers"),
        (put(NORM, torch.ones(31)), rf"{NORM} has shape \[31\].*\[32\]"),
        (put(NORM, torch.ones(32, dtype=torch.int8)), f"{NORM} is stored as I8"),
    ],
)
def test_wrong_tensors_are_named(make_hf, edit, message):
    directory, _ = make_hf("llama")
    edit_tensors(directory / "model.safetensors", edit)
    for action in (HFCheckpointer(directory).check, HFCheckpointer(directory).load_checkpoint):
        with pytest.raises(ValueError, match=message) as error:
            action()
        assert str(directory) in str(error.value)
        assert "\n" not in str(error.value)


def test_tensors_that_the_model_has_anyway_are_ignored(make_hf, load, tokens):
    directory, reference = make_hf("llama", tie_word_embeddings=True)

    def edit(tensors):
        tensors["lm_head.weight"] = torch.zeros(61, 32)
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)

    edit_tensors(directory / "model.safetensors", edit)
    logits = reference(tokens).logits
    torch.testing.assert_close(load(decoder, directory)(tokens), logits, atol=1e-5, rtol=1e-5)


def test_truncated_file(make_hf):
    directory, _ = make_hf("llama")
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors: not a complete safetensors file"):
        HFCheckpointer(directory).check()


def test_missing_files(make_hf, tmp_path):
    directory, _ = make_hf("llama")
    with pytest.raises(FileNotFoundError, match=r"other\.safetensors: checkpoint file not found"):
        HFCheckpointer(directory, ["other.safetensors"]).check()
    (directory / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"neither model\.safetensors nor"):
        HFCheckpointer(directory).check()
    (directory / "pytorch_model.bin").touch()
    with pytest.raises(FileNotFoundError, match="save_pretrained"):
        HFCheckpointer(directory).check()


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ('{"weight_map": {"a": "../model.safetensors"}}', ValueError),
        ('{"weight_map": {"a": "/etc/passwd"}}', ValueError),
        ('{"weight_map": {"a": "model-1.safetensors"}}', FileNotFoundError),
        ('{"weight_map": ["a"]}', ValueError),
        ('{"weight_map": {"a": 1}}', ValueError),
        ("{}", ValueError),
        ("{", ValueError),
    ],
)
def test_bad_index(make_hf, content, error):
    directory, _ = make_hf("llama")
    (directory / "model.safetensors").rename(directory.parent / "model.safetensors")
    (directory / "model.safetensors.index.json").write_text(content)
    with pytest.raises(error) as caught:
        HFCheckpointer(directory).check()
    assert str(directory) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("argument", ["resume_from_checkpoint", "should_load_recipe_state"])
def test_recipe_state_is_refused(tmp_path, argument):
    with pytest.raises(ValueError, match="weights only"):
        HFCheckpointer(tmp_path, **{argument: True})


@contextlib.contextmanager
def full_disk():
    """No file may grow beyond 10 kB, which the weights do.

    Held around one call only: pytest's own output may be a file, and a longer one.
    """
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_failed_save_leaves_nothing(make_hf, tmp_path):
    directory, _ = make_hf("llama")
    state = HFCheckpointer(directory).load_checkpoint()
    checkpointer = HFCheckpointer(directory, output_dir=tmp_path / "out")
    with full_disk(), pytest.raises(OSError, match="could not be written"):
        checkpointer.save_checkpoint(state, epoch=0)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_failed_save_keeps_the_old_directory(make_hf, tmp_path):
    directory, _ = make_hf("llama")
    state = HFCheckpointer(directory).load_checkpoint()
    checkpointer = HFCheckpointer(directory, output_dir=tmp_path / "out")
    checkpointer.save_checkpoint(state, epoch=0)
    before = (tmp_path / "out/epoch_0/model.safetensors").read_bytes()
    state[MODEL_KEY]["norm.scale"] = state[MODEL_KEY]["norm.scale"] + 1
    with full_disk(), pytest.raises(OSError, match="could not be written"):
        checkpointer.save_checkpoint(state, epoch=0)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["epoch_0"]
    assert (tmp_path / "out/epoch_0/model.safetensors").read_bytes() == before


@pytest.mark.parametrize("change", ["missing", "misshapen", "unknown"])
def test_weights_that_do_not_fit_the_config_are_not_saved(make_hf, tmp_path, change):
    directory, _ = make_hf("llama")
    weights = HFCheckpointer(directory).load_checkpoint()[MODEL_KEY]
    if change == "missing":
        del weights["norm.scale"]
    elif change == "misshapen":
        weights["norm.scale"] = torch.ones(3)
    else:
        weights["layers.0.attn.q_proj.lora_a.bias"] = torch.ones(3)
    with pytest.raises(ValueError, match=r"norm|lora_a"):
        save_pretrained(weights, directory, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_saving_over_the_directory_that_is_mapped(make_hf):
    directory, _ = make_hf("llama")
    weights = HFCheckpointer(directory).load_checkpoint()[MODEL_KEY]
    save_pretrained(weights, directory, directory)
    again = HFCheckpointer(directory).load_checkpoint()[MODEL_KEY]
    assert all(torch.equal(again[name], tensor) for name, tensor in weights.items())


def write_atomically(target, content, error=None):
    with atomic_directory(target) as folder:
        (folder / "file").write_text(content)
        if error:
            raise error


def test_atomic_directory_replaces_and_cleans_up(tmp_path):
    write_atomically(tmp_path / "d", "old")
    write_atomically(tmp_path / "d", "new")
    assert (tmp_path / "d" / "file").read_text() == "new"
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "d", "half", KeyboardInterrupt())
    assert (tmp_path / "d" / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_atomic_directory_recovers_from_a_killed_process(tmp_path):
    (tmp_path / ".d.previous").mkdir()  # killed between the two renames
    (tmp_path / ".d.partial").mkdir()
    with pytest.raises(OSError, match="disk"):
        write_atomically(tmp_path / "d", "half", OSError("disk"))
    assert [path.name for path in tmp_path.iterdir()] == ["d"]
