"""A stage as an ONNX file without weights, for Netron: its ops under their own names, which no runtime knows."""

import re
from collections import Counter
from dataclasses import replace

from int8pass.errors import MissingDependencyError
from int8pass.inspection.stages import Stage, StageNode

_TYPES = {
    "f16": "FLOAT16", "bf16": "BFLOAT16", "f32": "FLOAT", "f64": "DOUBLE", "i8": "INT8", "u8": "UINT8", "i16": "INT16",
    "i32": "INT32", "i64": "INT64", "bool": "BOOL",
}  # fmt: skip
_DOMAIN = "torch"  # of functions that belong to no library of ops


def stage_onnx(stage: Stage) -> bytes:
    """The file. Each node is named after its module, and its line of the text is its documentation.

    Inputs and weights are graph inputs. The same graph gives the same bytes. Raises MissingDependencyError.
    """
    try:
        from onnx import helper
    except ImportError as error:
        raise MissingDependencyError("--format onnx needs onnx: pip install 'int8pass[onnx]'") from error
    stage = _with_known_names(stage)
    calls = [node for node in stage.nodes if node.kind == "call"]
    results = [name for node in stage.nodes if node.kind == "output" for name in node.inputs]
    typed = {node.name: _value(node) for node in stage.nodes if node.kind != "output"}
    graph = helper.make_graph(
        [_node(node) for node in calls],
        stage.name,
        [typed[node.name] for node in stage.nodes if node.kind in ("input", "weight")],
        [typed[name] for name in dict.fromkeys(results)],
        value_info=[typed[node.name] for node in calls if node.name not in results],
    )
    domains = dict.fromkeys(["", *(_operation(node)[0] for node in calls)])
    opsets = [helper.make_opsetid(domain, 1 if domain else 18) for domain in domains]
    model = helper.make_model(graph, opset_imports=opsets, producer_name="int8pass", ir_version=10)
    return model.SerializeToString(deterministic=True)


def _with_known_names(stage: Stage) -> Stage:
    """Weights under the names that the model gives them: "fc.weight", "fc.weight (int8 codes)"."""
    names = {node.name: _known_name(node) for node in stage.nodes if node.kind == "weight"}
    taken = Counter([*names.values(), *(node.name for node in stage.nodes if node.name not in names)])
    names = {name: known for name, known in names.items() if taken[known] == 1}
    nodes = (
        replace(node, name=names.get(node.name, node.name), inputs=tuple(names.get(each, each) for each in node.inputs))
        for node in stage.nodes
    )
    return Stage(stage.name, tuple(nodes))


def _known_name(node: StageNode) -> str:
    found = re.search(r" = (?:(weight)|(.*) of) '(.*?)'(.*)$", node.text)
    if found is None:
        return node.name
    return f"{found[3]}{found[4]}" + (f" ({found[2]})" if found[2] else "")


def _node(node: StageNode):
    from onnx import helper

    from int8pass.export.metadata import MODULE

    domain, name = _operation(node)
    path = f"{node.module}/{node.name}" if node.module else node.name
    made = helper.make_node(name, node.inputs, [node.name], path, doc_string=node.text, domain=domain)
    if node.module:
        helper.set_model_props(made, {MODULE: node.module})
    return made


def _operation(node: StageNode) -> tuple[str, str]:
    """Domain and name of `%y : ... = int8pass.dequantize(...)`; an operator of an ONNX file has no domain."""
    called = node.text.partition(" = ")[2].partition("(")[0]
    library, _, name = called.rpartition(".")
    return library or _DOMAIN, name


def _value(node: StageNode):
    """A value with the type that the text shows; of unknown type where it shows none."""
    import onnx
    from onnx import helper

    found = re.fullmatch(r"(\w+)\[(.*)\]", node.text.partition(" = ")[0].partition(" : ")[2])
    if found is None or found[1] not in _TYPES:
        return helper.make_value_info(node.name, onnx.TypeProto(), node.text)
    sizes = [int(size) if size.isdigit() else size for size in found[2].split(", ") if size]
    kind = getattr(onnx.TensorProto, _TYPES[found[1]])
    return helper.make_tensor_value_info(node.name, kind, sizes, node.text)
