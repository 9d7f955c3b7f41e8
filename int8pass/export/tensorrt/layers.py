"""`EngineReport`: the layers of an engine and the types they run in, as text and as JSON."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from int8pass.export.tensorrt.versions import inspected_type

SCHEMA_VERSION = 1
_NAME_WIDTH = 70


@dataclass(frozen=True)
class Layer:
    """One layer of an engine, which is often several ONNX nodes fused.

    kind: TensorRT's layer type. inputs, outputs: their data types and formats in TensorRT's words. tactic: the kernel.
    """

    name: str
    kind: str = ""
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    tactic: str = ""

    @property
    def reads_int8(self) -> bool:
        """Whether an input of it is int8."""
        return any("int8" in each.lower() for each in self.inputs)


@dataclass(frozen=True)
class EngineReport:
    """What TensorRT made of a model. tensorrt: its version. size: bytes of the engine. layers: in order."""

    tensorrt: str
    size: int
    layers: tuple[Layer, ...]

    @classmethod
    def from_inspector(cls, information: str, tensorrt: str, size: int) -> "EngineReport":
        """From the JSON of EngineInspector.get_engine_information, of TensorRT 10 or 11."""
        return cls(tensorrt, size, tuple(map(_layer, json.loads(information).get("Layers", []))))

    def to_json(self, indent: int | None = 2) -> str:
        """JSON with a schema version, the layers, and how many read int8."""
        layers = [{**dataclasses.asdict(layer), "reads_int8": layer.reads_int8} for layer in self.layers]
        document = {
            "schema": SCHEMA_VERSION,
            "tensorrt": self.tensorrt,
            "bytes": self.size,
            "int8_layers": sum(layer.reads_int8 for layer in self.layers),
            "layers": layers,
        }
        return json.dumps(document, indent=indent)

    def __str__(self) -> str:
        width = max([len("layer"), *(min(len(layer.name), _NAME_WIDTH) for layer in self.layers)])
        rows = [f"{'int8':4}  {'layer':{width}}  type"]
        rows += [
            f"{'int8' if each.reads_int8 else '':4}  {_short(each.name):{width}}  {each.kind}" for each in self.layers
        ]
        count = sum(layer.reads_int8 for layer in self.layers)
        megabytes = f"{self.size / 1e6:.1f} MB"
        summary = f"{count} of {len(self.layers)} layers read int8; TensorRT {self.tensorrt}, {megabytes} of engine"
        return "\n".join([*(row.rstrip() for row in rows), "", summary])


def _layer(entry: dict[str, Any] | str) -> Layer:
    if isinstance(entry, str):  # an engine built without details
        return Layer(entry)
    inputs, outputs = (tuple(map(inspected_type, entry.get(field, []))) for field in ("Inputs", "Outputs"))
    return Layer(entry.get("Name", ""), entry.get("LayerType", ""), inputs, outputs, entry.get("TacticName", ""))


def _short(name: str) -> str:
    return name if len(name) <= _NAME_WIDTH else f"{name[: _NAME_WIDTH - 3]}..."
