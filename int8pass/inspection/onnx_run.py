"""An exported file in ONNX Runtime: whole, with what its Linears read and give, and each Linear by itself."""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from int8pass.errors import OnnxFileError
from int8pass.export.runtime import failures, session
from int8pass.inspection.float_run import LinearCall
from int8pass.inspection.onnx_linears import FileLinear

if TYPE_CHECKING:
    import onnx_ir as ir

    from int8pass.export.tensorrt.onnx_graph import OnnxGraph

Feed = Mapping[str, Any]  # numpy arrays by name of the input
_INLINE_BYTES = 1024  # larger tensors lie beside a graph that is written for a run: a file ends at 2 GB


def numpy_of(tensor: Tensor) -> Any:
    """A tensor as ONNX Runtime takes it. Raises OnnxFileError for bfloat16, which NumPy does not have."""
    if tensor.dtype is torch.bfloat16:
        raise OnnxFileError(
            "the model computes in bfloat16, and ONNX Runtime takes no such values from Python: name the float32 model"
        )
    return tensor.detach().cpu().contiguous().numpy()


class FileRun:
    """A file with its Linears, ready to run. `folder` holds the graphs that are cut out of it.

    Raises OnnxFileError for a file in bfloat16.
    """

    def __init__(self, graph: "OnnxGraph", path: Path, linears: Sequence[FileLinear], folder: Path) -> None:
        self.graph, self.path, self.linears, self.folder = graph.model.graph, path, tuple(linears), folder
        self._model = graph.model
        self._by_key = {linear.key: linear for linear in linears}
        self._require_numpy()
        self._alone: dict[tuple[str, str], Any] = {}

    def _require_numpy(self) -> None:
        import onnx_ir as ir

        values = ir.convenience.create_value_mapping(self.graph)
        names = [name for linear in self.linears for name in (linear.x, linear.y)]
        if any(values[name].dtype == ir.DataType.BFLOAT16 for name in names):
            raise OnnxFileError(
                f"{str(self.path)!r} computes in bfloat16, and ONNX Runtime gives no such values to Python: a report "
                "without --timings and --against reads the file without running it"
            )

    @cached_property
    def session(self) -> Any:
        """The whole file, at ONNX Runtime's default optimization level."""
        return self.open(self.path)

    def outputs(self, feed: Feed) -> list[Tensor]:
        """What the file returns. Raises OnnxFileError where ONNX Runtime cannot run it on these inputs."""
        return [torch.from_numpy(each) for each in self.call(self.session, feed)]

    def taps(self, feed: Feed, names: Sequence[str]) -> list[Tensor]:
        """The values of these names, in a run of the file. Raises as `outputs` does."""
        import onnx_ir as ir

        wanted = list(dict.fromkeys(names))
        values = ir.convenience.create_value_mapping(self.graph)
        inside = [name for name in wanted if not values[name].is_graph_input()]
        graph = ir.convenience.extract(self.graph, list(self.graph.inputs), [*self.graph.outputs, *inside])
        tapped = self.open(self.write(graph, "taps"))
        given = [each.name for each in tapped.get_outputs()]
        found = {**feed, **dict(zip(given, self.call(tapped, feed), strict=True))}
        return [torch.from_numpy(found[name]) for name in names]

    def int8(self, call: LinearCall) -> Tensor:
        """A Linear of the float model as the file computes it. Raises OnnxFileError where the file has none such."""
        key = (call.graph.program.tensors[call.expression.root].name, call.expression.key)
        if key not in self._by_key:
            raise OnnxFileError(f"{str(self.path)!r} has no int8 form of {key[0]!r}: it was made from another model")
        if key not in self._alone:
            self._alone[key] = self._cut(self._by_key[key], len(self._alone))
        linear, alone = self._by_key[key], self._alone[key]
        (y,) = self.call(alone, {linear.x: numpy_of(call.x)})
        return torch.from_numpy(y)

    def write(self, graph: "ir.Graph", name: str) -> Path:
        """A graph as a file of its own, in the folder."""
        import onnx_ir as ir

        path = self.folder / f"{name}.onnx"
        model = ir.Model(graph, ir_version=self._model.ir_version)
        ir.save(model, path, external_data=f"{name}.data", size_threshold_bytes=_INLINE_BYTES)
        return path

    def open(self, path: Path, **settings: Any) -> Any:
        """A session of a file, with as many threads as PyTorch. Raises OnnxFileError where it does not load."""
        with self._told("load"):
            return session(path, threads=torch.get_num_threads(), **settings)

    def _cut(self, linear: FileLinear, number: int) -> Any:
        import onnx_ir as ir

        graph = ir.convenience.extract(self.graph, [linear.x], [linear.y])
        return self.open(self.write(graph, f"linear-{number}"))

    def call(self, session: Any, feed: Feed) -> list[Any]:
        """What a session gives, as numpy arrays. Raises OnnxFileError."""
        with self._told("run"):
            return session.run(None, dict(feed))

    @contextlib.contextmanager
    def _told(self, what: str) -> Iterator[None]:
        errors = failures()
        try:
            yield
        except errors as error:
            raise OnnxFileError(f"ONNX Runtime could not {what} {str(self.path)!r}: {error}") from error


@contextlib.contextmanager
def file_run(graph: "OnnxGraph", path: Path, linears: Sequence[FileLinear]) -> Iterator[FileRun]:
    """A file to run; what is cut out of it is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="int8pass-") as folder:
        yield FileRun(graph, path, linears, Path(folder))
