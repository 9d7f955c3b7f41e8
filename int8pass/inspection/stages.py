"""`Stage`: a graph after one pass, as plain records that can be printed, drawn and compared without the graph."""

import fnmatch
import json
from dataclasses import asdict, dataclass
from functools import cached_property

from torch import fx

from int8pass.graph import module_path
from int8pass.inspection.text import graph_lines
from int8pass.program import Program

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class StageNode:
    """One node. name: without its `%`; text: its line in the dump; kind: "input", "weight", "call" or "output".

    module: dotted name of the module that made it, or that holds the weight; inputs: names of the nodes it reads;
    weight: of an input that stands for a parameter or buffer, or for one of its int8 parts, that tensor's name.
    """

    name: str
    text: str
    kind: str
    module: str
    inputs: tuple[str, ...]
    weight: str = ""

    @property
    def stub(self) -> "StageNode":
        """The node as a graph shows it that leaves its computation out."""
        left, equals, _ = self.text.partition(" = ")
        return StageNode(self.name, f"{left}{equals}(left out)", "input", self.module, ())


@dataclass(frozen=True)
class Stage:
    """A graph after the pass `name`. nodes: in the graph's order."""

    name: str
    nodes: tuple[StageNode, ...]

    @property
    def text(self) -> str:
        """One line a node."""
        return "".join(f"{node.text}\n" for node in self.nodes)

    def to_json(self) -> str:
        """JSON with a schema version and the nodes."""
        document = {"schema": SCHEMA_VERSION, "stage": self.name, "nodes": [asdict(node) for node in self.nodes]}
        return json.dumps(document, indent=2) + "\n"

    def of_modules(self, pattern: str) -> "Stage":
        """The nodes of the modules that a glob matches, of all below them, and stubs of what they read from outside."""
        return self.only({node.name for node in self.nodes if _below(node.module, pattern)})

    def only(self, names: set[str]) -> "Stage":
        """The nodes of these names, and stubs of what they read from others."""
        read = {name for node in self.nodes if node.name in names for name in node.inputs}
        kept = (node if node.name in names else node.stub for node in self.nodes if node.name in names | read)
        return Stage(self.name, tuple(kept))

    def around_weight(self, weight: str) -> set[str]:
        """Names of the nodes that compute with a weight: its forms and views, its products, what only those need."""
        forms = {node.name for node in self.nodes if node.weight == weight}
        found, queue = set(forms), list(forms)
        while queue:
            for reader in self._readers.get(queue.pop(), ()):
                if reader.kind != "call":
                    continue
                found.add(reader.name)
                if reader.name not in forms and set(reader.inputs) <= forms:  # a view of the weight
                    forms.add(reader.name)
                    queue.append(reader.name)
        return found | self._int8_ancestors(found)

    def beside(self, names: set[str]) -> set[str]:
        """Names of the nodes outside of `names` that they read, or that read their results; other Linears left out."""
        read = {name for each in names for name in self._by_name[each].inputs}
        readers = {node.name for each in names for node in self._readers.get(each, ()) if not _is_int8(node)}
        return (read | readers) - names

    def _int8_ancestors(self, names: set[str]) -> set[str]:
        """What the int8pass ops among `names` read from other ops of int8pass: masks, scales, codes of activations."""
        found, queue = set(), [name for name in names if _is_int8(self._by_name[name])]
        while queue:
            for name in self._by_name[queue.pop()].inputs:
                node = self._by_name[name]
                if name not in found and _is_int8(node) and not _ends_linear(node):
                    found.add(name)
                    queue.append(name)
        return found

    @cached_property
    def _by_name(self) -> dict[str, StageNode]:
        return {node.name: node for node in self.nodes}

    @cached_property
    def _readers(self) -> dict[str, list[StageNode]]:
        found: dict[str, list[StageNode]] = {}
        for node in self.nodes:
            for name in node.inputs:
                found.setdefault(name, []).append(node)
        return found


def stage_of(name: str, program: Program) -> Stage:
    """The graph of a program as it is now."""
    lines = graph_lines(program.graph, program.labels)
    return Stage(
        name, tuple(_record(node, text, program) for node, text in zip(program.graph.nodes, lines, strict=True))
    )


def _record(node: fx.Node, text: str, program: Program) -> StageNode:
    weight = _weight(node, program)
    kind = "output" if node.op == "output" else "call" if node.op.startswith("call_") else "input"
    return StageNode(
        name=node.name,
        text=text,
        kind="weight" if weight else kind,
        module=weight.rpartition(".")[0] if weight else module_path(node),
        inputs=tuple(producer.name for producer in node.all_input_nodes),
        weight=weight,
    )


def _weight(node: fx.Node, program: Program) -> str:
    wanted = program.weight_inputs.get(node.name)
    source = program.tensors.get(wanted.expression.root if wanted else node.name)
    return source.name if source else ""


def _below(module: str, pattern: str) -> bool:
    parts = module.split(".")
    return any(fnmatch.fnmatchcase(".".join(parts[:count]), pattern) for count in range(1, len(parts) + 1))


def _is_int8(node: StageNode) -> bool:
    return " = int8pass." in node.text


def _ends_linear(node: StageNode) -> bool:
    return "= int8pass.dequantize(" in node.text
