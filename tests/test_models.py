"""load_model with factories and .pt2 files: what is loaded, what is refused, and with which words."""

import zipfile

import pytest
import torch
from torch import nn

from int8pass import convert
from int8pass.errors import ModelError
from int8pass.models import load_model

IN, OUT = 16, 8


def make():
    """A factory: a model in training mode, with its inputs."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(IN, OUT), nn.Dropout()), (torch.randn(4, IN),), {}


def make_keywords():
    model, (x,), _ = make()
    return model, (), {"input": x}


def make_exported_module():
    model, args, kwargs = make()
    return convert(model.eval(), args), args, kwargs


def make_wrong():
    return make()[0]


def make_with_list():
    model, args, kwargs = make()
    return model, list(args), kwargs


def make_failing():
    raise RuntimeError("no luck")


class Factories:
    make = staticmethod(make)


number = 3


def run(loaded):
    with torch.no_grad():
        return loaded.model(*loaded.args, **loaded.kwargs)


def is_ready(model):
    return not model.training and not any(parameter.requires_grad for parameter in model.parameters())


# --- MODULE:FACTORY


@pytest.mark.parametrize("factory", ("make", "make_keywords", "Factories.make"))
def test_factory(factory):
    loaded = load_model(f"tests.test_models:{factory}")
    assert is_ready(loaded.model)
    assert torch.equal(run(loaded), run(load_model("tests.test_models:make")))


def test_factory_of_an_exported_module():
    assert run(load_model("tests.test_models:make_exported_module")).shape == (4, OUT)


def test_factory_in_the_current_directory(tmp_path, monkeypatch):
    (tmp_path / "a_model_of_mine.py").write_text("from tests.test_models import make as build\n")
    monkeypatch.syspath_prepend("")  # restores sys.path, and what it caches, after the test
    monkeypatch.chdir(tmp_path)
    assert run(load_model("a_model_of_mine:build")).shape == (4, OUT)


@pytest.mark.parametrize("factory", ("make_wrong", "make_with_list"))
def test_factory_with_another_result_is_refused(factory):
    with pytest.raises(ModelError, match=r"must return \(model, args, kwargs\)"):
        load_model(f"tests.test_models:{factory}")


def test_unknown_factory_is_refused_with_the_nearest_name():
    with pytest.raises(ModelError, match="did you mean 'make_keywords'"):
        load_model("tests.test_models:make_keyword")
    with pytest.raises(ModelError, match=r"has no 'Factories\.absent'"):
        load_model("tests.test_models:Factories.absent")


def test_what_is_no_function_is_refused():
    with pytest.raises(ModelError, match="is not a function: it is int"):
        load_model("tests.test_models:number")


@pytest.mark.parametrize("module", ("absent_module", "tests.absent_module", "absent.package"))
def test_unknown_module_is_refused(module):
    with pytest.raises(ModelError, match=f"no Python module '{module}'"):
        load_model(f"{module}:make")


def test_errors_of_the_module_and_of_the_factory_are_theirs(tmp_path, monkeypatch):
    (tmp_path / "a_module_that_misses_another.py").write_text("import absent_module\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="absent_module"):
        load_model("a_module_that_misses_another:make")
    with pytest.raises(RuntimeError, match="no luck"):
        load_model("tests.test_models:make_failing")


# --- FILE.pt2


@pytest.fixture
def program():
    model, args, _ = make()
    with torch.no_grad():
        return torch.export.export(model.eval(), args)


def test_program_file(program, tmp_path):
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = load_model(str(tmp_path / "model.pt2"))
    assert torch.equal(loaded.model.module()(*loaded.args), program.module()(*loaded.args))
    assert torch.equal(loaded.args[0], make()[1][0]) and loaded.kwargs == {}


def test_converted_program_file(program, tmp_path):
    torch.export.save(convert(program), tmp_path / "model.pt2")
    assert load_model(str(tmp_path / "model.pt2")).args[0].shape == (4, IN)


def test_program_without_example_inputs_is_refused(program, tmp_path):
    program._example_inputs = None
    torch.export.save(program, tmp_path / "model.pt2")
    with pytest.raises(ModelError, match="no example inputs"):
        load_model(str(tmp_path / "model.pt2"))


def test_missing_program_file_is_refused(tmp_path):
    with pytest.raises(ModelError, match="there is no file"):
        load_model(str(tmp_path / "model.pt2"))


def write_text_file(path):
    path.write_text("a text")


def write_other_archive(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data", "data")


def write_state_dict(path):
    torch.save({"weight": torch.ones(2)}, path)


@pytest.mark.parametrize("write", (write_text_file, write_other_archive, write_state_dict))
def test_file_that_is_no_program_is_refused(write, tmp_path):
    write(tmp_path / "model.pt2")
    with pytest.raises(ModelError, match=r"not a program that torch\.export\.save wrote"):
        load_model(str(tmp_path / "model.pt2"))


def test_program_that_cannot_be_read_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "model.pt2", "w") as archive:
        archive.writestr("model/models/model.json", "{}")
    with pytest.raises(ModelError, match=r"torch\.export\.load could not read"):
        load_model(str(tmp_path / "model.pt2"))


# --- anything else


@pytest.mark.parametrize("spec", ("bert-base-uncased", "no/such/folder", "a:b:c", "module:", ":make"))
def test_anything_else_is_refused_with_the_three_forms(spec):
    with pytest.raises(ModelError) as refusal:
        load_model(spec)
    assert all(form in str(refusal.value) for form in ("MODULE:FACTORY", "FOLDER", "FILE.pt2"))


def test_an_onnx_file_is_refused_with_what_reads_it():
    with pytest.raises(ModelError, match=r"'model\.onnx' is an ONNX file: report, dump, debug and diff read those"):
        load_model("model.onnx")
