"""The public names, their documentation, and what `import int8pass` does not import."""

import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest

import int8pass

PUBLIC = [
    "Int8Linear",
    "Int8MixedConfig",
    "Int8PassError",
    "Profile",
    "Report",
    "build_engine",
    "calibrate",
    "convert",
    "explain",
    "export_onnx",
    "int8mixed",
    "load_engine",
    "quantize_",
    "requantize",
]
HEAVY = (
    "onnx",
    "onnxruntime",
    "onnxscript",
    "tensorrt",
    "torch_tensorrt",
    "transformers",
    "triton",
    "typer",
    "rich",
    "setuptools",
)
MODULES = [module.name for module in pkgutil.walk_packages(int8pass.__path__, "int8pass.")]


def members(public):
    """A public class's own functions and properties without an underscore."""
    found = {name: value for name, value in vars(public).items() if not name.startswith("_")}
    kinds = (property, classmethod, staticmethod)
    return [name for name, value in found.items() if inspect.isfunction(value) or isinstance(value, kinds)]


def test_public_names():
    assert int8pass.__all__ == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_object_is_documented(name):
    public = getattr(int8pass, name)
    assert len(inspect.getdoc(public) or "") > 20
    for member in members(public) if inspect.isclass(public) else ():
        assert inspect.getdoc(getattr(public, member)), f"{name}.{member}"


def test_star_import_gives_the_public_names():
    names = {}
    exec("from int8pass import *", names)
    assert sorted(names.keys() - {"__builtins__"}) == PUBLIC


def test_every_error_is_an_int8pass_error():
    errors = importlib.import_module("int8pass.errors")
    classes = [value for value in vars(errors).values() if inspect.isclass(value)]
    assert len(classes) > 5
    for error in classes:
        assert issubclass(error, int8pass.Int8PassError) and error.__doc__


def test_every_module_is_documented():
    assert "int8pass.cli" in MODULES
    for name in MODULES:
        if not name.endswith("__main__") and "triton" not in name:
            source = importlib.util.find_spec(name).origin
            with open(source, encoding="utf-8") as file:
                assert file.readline().startswith('"""'), name


def test_import_is_light():
    script = f"import sys, int8pass; print([name for name in {HEAVY} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert run.stdout.strip() == "[]"
