"""load_model with Hugging Face model folders: their example inputs, and what is refused before any of it runs."""

import importlib.resources
import json
import sys

import pytest
import torch

from int8pass.errors import MissingDependencyError, ModelError
from int8pass.models import load_model
from tests import minilm, zoo


def run(loaded):
    with torch.no_grad():
        return loaded.model(*loaded.args, **loaded.kwargs)


def is_ready(model):
    return not model.training and not any(parameter.requires_grad for parameter in model.parameters())


def write_config(folder, **entries):
    (folder / "config.json").write_text(json.dumps(entries))


def save(name, folder, **changes):
    """Save a small model; `changes` are set in its config.json."""
    model, _, _ = zoo.build(name)
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return model


INPUTS = {
    "bert": {"input_ids": (1, 16)},
    "gpt2": {"input_ids": (1, 16)},
    "bart": {"input_ids": (1, 16), "decoder_input_ids": (1, 16)},
    "vit": {"pixel_values": (1, 3, 32, 32)},
    "whisper": {"input_features": (1, 16, 32), "decoder_input_ids": (1, 16)},
    "speech_to_text": {"input_features": (1, 64, 16), "decoder_input_ids": (1, 16)},
    "wav2vec2": {"input_values": (1, 16000)},
    "clip": {"input_ids": (1, 16), "pixel_values": (1, 3, 32, 32)},
}


@pytest.mark.parametrize("name", INPUTS)
def test_folder_without_tokenizer_gets_inputs_made_from_its_config(name, tmp_path):
    model = save(name, tmp_path)
    loaded = load_model(str(tmp_path))
    assert type(loaded.model) is type(model) and is_ready(loaded.model)
    assert {key: tuple(tensor.shape) for key, tensor in loaded.kwargs.items()} == INPUTS[name]
    state = model.state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in loaded.model.state_dict().items())
    assert zoo.outputs(run(loaded))


def test_weights_keep_their_dtype_and_inputs_take_it(tmp_path):
    model, _, _ = zoo.build("vit")
    model.bfloat16().save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path))
    assert loaded.model.dtype == loaded.kwargs["pixel_values"].dtype == torch.bfloat16


def test_inputs_are_the_same_each_time(tmp_path):
    save("vit", tmp_path)
    first, second = (load_model(str(tmp_path)).kwargs["pixel_values"] for _ in range(2))
    assert torch.equal(first, second)


def test_folder_with_a_tokenizer_gets_a_sentence():
    loaded = load_model(str(importlib.resources.files(minilm.PACKAGE) / "model"))
    assert type(loaded.model).__name__ == "BertModel" and is_ready(loaded.model)
    assert set(loaded.kwargs) == {"input_ids", "attention_mask", "token_type_ids"}
    assert loaded.kwargs["input_ids"].shape[1] > 12
    assert run(loaded).last_hidden_state.shape[2] == 384


def test_folder_without_architectures_is_loaded_by_its_model_type(tmp_path):
    save("bert", tmp_path, architectures=None)
    assert type(load_model(str(tmp_path)).model).__name__ == "BertModel"


def test_folder_without_config_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"no config\.json\nMODEL is one of"):
        load_model(str(tmp_path))


def test_config_that_is_no_json_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="is not JSON"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("name", ("pytorch_model.bin", "model.pt", "model.pth"))
def test_pickled_weights_are_refused_before_anything_is_loaded(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    write_config(tmp_path, model_type="bert", architectures=["BertModel"])
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ModelError, match=r"only pickled weights \(\.\w+\), which can run code"):
        load_model(str(tmp_path))


def test_folder_without_weights_is_refused(tmp_path):
    write_config(tmp_path, model_type="bert", architectures=["BertModel"])
    with pytest.raises(ModelError, match=r"must hold \.safetensors weights and holds none"):
        load_model(str(tmp_path))


def test_code_of_a_folder_is_refused_and_not_run(tmp_path, monkeypatch):
    save("bert", tmp_path, auto_map={"AutoModel": "modeling.Model"})
    (tmp_path / "modeling.py").write_text("raise AssertionError('this ran')\n")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModelError, match="auto_map"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("name", ("Trainer", "AbsentModel", "pipeline"))
def test_unknown_architecture_is_refused(name, tmp_path):
    save("bert", tmp_path, architectures=[name])
    with pytest.raises(ModelError, match=f"has no model class '{name}'"):
        load_model(str(tmp_path))


def test_unknown_model_type_is_refused(tmp_path):
    save("bert", tmp_path, model_type="absent")
    with pytest.raises(ModelError, match="transformers could not load the folder"):
        load_model(str(tmp_path))


def test_broken_weights_are_refused(tmp_path):
    save("bert", tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(ModelError, match="transformers could not load the folder"):
        load_model(str(tmp_path))


def test_broken_tokenizer_is_refused(tmp_path):
    save("bert", tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="transformers could not load the folder"):
        load_model(str(tmp_path))


def test_missing_transformers_names_what_to_install(tmp_path, monkeypatch):
    save("bert", tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'int8pass\[examples\]'"):
        load_model(str(tmp_path))
