"""Run by test_bindings_contract: what can be asked of TensorRT's Python bindings where its libraries are stand-ins.

python -m tests.export.tensorrt.bindings_probe STAND_INS MODEL    prints one JSON object
"""

import ast
import ctypes
import json
import sys
from io import StringIO
from pathlib import Path

import int8pass
from int8pass.export.tensorrt import engine, progress, versions

# What the variables of these files are, in TensorRT's names.
OBJECTS = {
    "build.py": {
        "builder": "Builder",
        "config": "IBuilderConfig",
        "network": "INetworkDefinition",
        "parser": "OnnxParser",
        "error": "ParserError",
        "tensor": "ITensor",
        "profile": "IOptimizationProfile",
        "cache": "ITimingCache",
        "plan": "IHostMemory",
        "runtime": "Runtime",
        "engine": "ICudaEngine",
        "inspector": "EngineInspector",
    },
    "engine.py": {
        "runtime": "Runtime",
        "engine": "ICudaEngine",
        "_engine": "ICudaEngine",
        "_context": "IExecutionContext",
        "inspector": "EngineInspector",
    },
    "versions.py": {"builder": "Builder", "config": "IBuilderConfig"},
    "progress.py": {},
}
ONLY_IN_10 = {"BuilderFlag.INT8", "BuilderFlag.FP16", "BuilderFlag.BF16"}


def names_used() -> set[str]:
    """Every dotted name of TensorRT that int8pass uses: of the module itself, and of its classes."""
    found = {f"DataType.{name}" for name in engine.DTYPES}
    for file, objects in OBJECTS.items():
        tree = ast.parse(Path(versions.__file__).with_name(file).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                parts = ast.unparse(node).removeprefix("self.").split(".")
                if parts[0] in ("trt", "_trt") and len(parts) > 1:
                    found.add(".".join(parts[1:]))
                elif parts[0] in objects and len(parts) == 2:
                    found.add(f"{objects[parts[0]]}.{parts[1]}")
    return found


def missing(trt, names: set[str]) -> list[str]:
    """Those that the bindings do not have."""
    absent = []
    for name in sorted(names):
        found = trt
        for part in name.split("."):
            found = getattr(found, part, None)
        if found is None:
            absent.append(name)
    return absent


def reason(call) -> list[str]:
    """The type and message of the error that a call raises."""
    try:
        call()
    except int8pass.Int8PassError as error:
        return [type(error).__name__, str(error)]
    return []


def main(stand_ins: str, model: str) -> None:
    for library in sorted(Path(stand_ins).iterdir()):
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    import tensorrt_bindings as trt
    from rich.console import Console
    from rich.progress import Progress

    sys.modules["tensorrt"] = trt  # the package of that name only imports this one and the libraries
    bars = Progress(console=Console(file=StringIO()))
    monitor, messages = progress.progress_monitor(trt, bars), progress.Messages()
    logger = progress.trt_logger(trt, messages)
    monitor.phase_start("Building", None, 2)
    logger.log(trt.ILogger.Severity.ERROR, "said")
    names = names_used()
    target = Path(model).with_suffix(".engine")
    result = {
        "version": trt.__version__,
        "names": sorted(names),
        "missing": missing(trt, names),
        "monitor": isinstance(monitor, trt.IProgressMonitor) and monitor.step_complete("Building", 0),
        "logger": isinstance(logger, trt.ILogger) and messages.errors,
        "build": reason(lambda: int8pass.build_engine(model, target)),
        "build_absent": reason(lambda: int8pass.build_engine(f"{model}.absent", target)),
        "load": reason(lambda: int8pass.load_engine(target)),
        "written": target.exists(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
