"""`build_engine`: an ONNX file into a TensorRT engine, built on and for the GPU of this machine."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from int8pass.errors import ConfigError, EngineError, OnnxFileError
from int8pass.export.tensorrt.layers import EngineReport
from int8pass.export.tensorrt.progress import Messages, progress_monitor, trt_logger
from int8pass.export.tensorrt.shapes import check_names, shape_range
from int8pass.export.tensorrt.versions import create, create_network, import_tensorrt
from int8pass.files import require_writable, write_bytes

OPTIMIZATION_LEVELS = range(6)


def build_engine(
    onnx_path: str | os.PathLike,
    engine_path: str | os.PathLike,
    *,
    shapes: Mapping[str, Sequence[Sequence[int]]] | None = None,
    precision: str = "file",
    workspace_bytes: int | None = None,
    optimization_level: int | None = None,
    timing_cache: str | os.PathLike | None = None,
    progress: bool = True,
) -> EngineReport:
    """Build a TensorRT engine (not yet run on a GPU: see README.md in this folder) and say what its layers run in.

    shapes: for each input with dynamic dimensions (smallest, typical, largest) shape; inputs that are left out get the
    defaults of `shapes.shape_range`. precision: "file", types as in the ONNX file; with TensorRT 10 also "float16" or
    "bfloat16". workspace_bytes: the most scratch memory that a layer may take; None, all of the GPU.
    optimization_level: 0 (fast build) to 5 (fast engine); None, TensorRT's own 3. timing_cache: a file of kernel
    timings, read where it exists and written after the build, which makes the next one faster. progress: bars on
    standard error.

    The engine is written whole, then renamed: a failure leaves no part of one.

    Raises MissingDependencyError without TensorRT; EngineError without a GPU, or with TensorRT's own reason where it
    cannot read or build the model; ConfigError for options that do not fit; OnnxFileError for a missing file;
    OutputError where a file cannot be written.
    """
    trt = import_tensorrt()
    onnx_path, engine_path = Path(onnx_path), Path(engine_path)
    if not onnx_path.is_file():
        raise OnnxFileError(f"there is no file {str(onnx_path)!r}")
    for path in (engine_path, *((Path(timing_cache),) if timing_cache is not None else ())):
        require_writable(path)  # before a build of minutes
    messages = Messages()
    logger = trt_logger(trt, messages)
    builder = create(trt, "Builder", logger)
    config = builder.create_builder_config()
    _set_options(trt, config, workspace_bytes, optimization_level)
    network = create_network(trt, builder, config, precision)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(os.fspath(onnx_path)):
        raise EngineError(f"TensorRT cannot read {str(onnx_path)!r}:\n{_parser_errors(parser)}")
    _add_shapes(builder, config, network, shapes or {})
    cache = _timing_cache(config, timing_cache)
    with _progress(trt, config, progress) as monitor:
        plan = builder.build_serialized_network(network, config)
    if plan is None:
        if monitor is not None and monitor.cancelled:
            raise KeyboardInterrupt
        raise EngineError(f"TensorRT cannot build an engine of {str(onnx_path)!r}:\n{messages}")
    report = _inspect(trt, logger, plan)
    write_bytes(engine_path, memoryview(plan))
    if cache is not None:
        write_bytes(Path(timing_cache), memoryview(cache.serialize()))
    return report


def _set_options(trt: ModuleType, config: Any, workspace_bytes: int | None, optimization_level: int | None) -> None:
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # or the inspector knows names only
    if workspace_bytes is not None:
        if workspace_bytes <= 0:
            raise ConfigError(f"workspace_bytes must be positive, not {workspace_bytes}")
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
    if optimization_level is not None:
        if optimization_level not in OPTIMIZATION_LEVELS:
            raise ConfigError(f"optimization_level must be 0 to 5, not {optimization_level!r}")
        config.builder_optimization_level = optimization_level


def _parser_errors(parser: Any) -> str:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    return "\n".join(f"{error.node_name() or 'the model'}: {error.desc()}" for error in errors)


def _add_shapes(builder: Any, config: Any, network: Any, given: Mapping[str, Sequence[Sequence[int]]]) -> None:
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    check_names(given, (tensor.name for tensor in inputs))
    ranges = {tensor.name: shape_range(tensor.name, tuple(tensor.shape), given.get(tensor.name)) for tensor in inputs}
    if not any(ranges.values()):
        return
    profile = builder.create_optimization_profile()
    for name, each in ranges.items():
        if each is not None:
            profile.set_shape(name, each.smallest, each.typical, each.largest)
    config.add_optimization_profile(profile)


def _timing_cache(config: Any, path: str | os.PathLike | None) -> Any:
    if path is None:
        return None
    content = Path(path).read_bytes() if Path(path).is_file() else b""
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, False):
        raise EngineError(f"{os.fspath(path)!r} is no timing cache of this TensorRT on this GPU; name another file")
    return cache


@contextlib.contextmanager
def _progress(trt: ModuleType, config: Any, shown: bool) -> Iterator[Any]:
    if not shown:
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bars:
        monitor = progress_monitor(trt, bars)
        config.progress_monitor = monitor
        yield monitor


def _inspect(trt: ModuleType, logger: Any, plan: Any) -> EngineReport:
    runtime = create(trt, "Runtime", logger)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineError("TensorRT cannot read back the engine that it has built")
    inspector = engine.create_engine_inspector()
    information = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    return EngineReport.from_inspector(information, trt.__version__, plan.nbytes)
