"""One table: the same model in float32, bfloat16, under int8mixed, and quantized by bitsandbytes, torchao and PyTorch.

Speed is relative to float32 eager, from rounds in which every contestant runs once: a busy machine slows all of them.
Memory is counted from the tensors that a contestant holds, not from the process.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from int8pass.bench import quantizers
from int8pass.bench.measure import Prepared, Progress, compiling, measure
from int8pass.bench.minilm import Tokens, cosine_error, embed
from int8pass.bench.timing import ratio
from int8pass.freed_parameter import is_freed
from int8pass.weight_cache import WEIGHTS


@dataclass(frozen=True)
class Contestant:
    """name: as the table shows it; prepare: changes a copy of the float32 model in place, returns what is called."""

    name: str
    prepare: Callable[[nn.Module], Callable]


@dataclass(frozen=True)
class Result:
    """One row. error: mean 1 - cosine of the embeddings to float32; time: a fraction of the first contestant's.

    batching: mean 1 - cosine between a text's embedding by itself and in its batch. linear_bytes: the weights of
    Linears in every form that is held; model_bytes: all parameters, buffers and int8 forms. failure: why there are no
    figures, "" where there are.
    """

    name: str
    error: float = 0.0
    batching: float = 0.0
    time: float = 0.0
    linear_bytes: int = 0
    model_bytes: int = 0
    failure: str = ""


@dataclass(frozen=True)
class Task:
    """What every contestant runs. batches: timed; alone: batches of one text each, twice, the first of `batches`."""

    batches: Sequence[Tokens]
    alone: Sequence[Tokens]
    reference: Tensor


def compare(
    model: nn.Module,
    batches: Sequence[Tokens],
    alone: Sequence[Tokens],
    contestants: Sequence[Contestant],
    rounds: int = 5,
    progress: Progress = lambda message: None,
) -> list[Result]:
    """Run every contestant on a float32 model in eval mode. See Task. A contestant that fails becomes a row of its own.

    `progress` is told what takes long, before it does. Time is relative to the first contestant's.
    """
    task = Task(batches, alone, embed(model, batches))
    details: dict[str, tuple] = {}  # batching error and bytes
    with compiling():
        found = measure(contestants, lambda contestant: _prepare(contestant, model, task, details), rounds, progress)
    return [
        Result(row.name, failure=row.failure)
        if row.failure
        else Result(
            row.name, row.error, details[row.name][0], ratio(row.seconds, found[0].seconds), *details[row.name][1:]
        )
        for row in found
    ]


def _prepare(contestant: Contestant, model: nn.Module, task: Task, details: dict[str, tuple]) -> Prepared:
    """A contestant with its own copy of the model, run once."""
    own = copy.deepcopy(model)
    linears = [name for name, module in own.named_modules() if isinstance(module, nn.Linear)]
    call = contestant.prepare(own)
    batched = embed(call, task.batches)
    alone = embed(call, task.alone)[::2]
    batching = cosine_error(alone, batched[: len(alone)])
    details[contestant.name] = (batching, _bytes(_weights(own, linears)), _bytes(_everything(own)))
    return Prepared(lambda: embed(call, task.batches), error=cosine_error(batched, task.reference))


def _everything(model: nn.Module) -> Iterator[Tensor]:
    for module in model.modules():
        yield from _held_by(module)


def _weights(model: nn.Module, linears: Sequence[str]) -> Iterator[Tensor]:
    for name in linears:
        for module in model.get_submodule(name).modules():
            yield from _held_by(module, without=("bias",))


def _held_by(module: nn.Module, without: Sequence[str] = ()) -> Iterator[Tensor]:
    """A module's own tensors: parameters, buffers, and where the peers keep theirs."""
    for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        if name not in without:
            yield tensor
    yield from (
        held for held in vars(getattr(module, "state", module)).values() if type(held) is Tensor
    )  # bitsandbytes
    packed = getattr(module, "_packed_params", None)
    if isinstance(packed, torch._C.ScriptObject):  # quantize_dynamic; its bias counts as zero bytes
        yield packed.unpack()[0].int_repr()


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages behind the tensors, each counted once, and of the int8 forms that int8pass keeps."""
    found = list(tensors)
    int8 = [WEIGHTS.nbytes(tensor) for tensor in found]
    storages = [tensor.untyped_storage() for outer in found if not is_freed(outer) for tensor in _plain(outer)]
    return sum(int8) + sum({storage.data_ptr(): storage.nbytes() for storage in storages if storage.nbytes()}.values())


def _plain(tensor: Tensor) -> Iterator[Tensor]:
    """The plain tensors inside a tensor subclass (torchao), or the tensor itself."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _plain(getattr(tensor, name))


def _inductor(model: nn.Module) -> Callable:
    return torch.compile(model, dynamic=True)


def _bfloat16(model: nn.Module) -> Callable:
    return _inductor(model.bfloat16())


def int8mixed(**options) -> Callable[[nn.Module], Callable]:
    """Compile with these options of Int8MixedConfig."""
    return lambda model: torch.compile(model, backend="int8mixed", dynamic=True, options=options)


def _int8mixed_bfloat16(model: nn.Module) -> Callable:
    return int8mixed()(model.bfloat16())


def _torchao(model: nn.Module) -> Callable:
    return _inductor(quantizers.torchao(model))


# The first is what the others' time is measured against.
FLOAT32 = Contestant("float32, eager", lambda model: model)
PEERS = (
    FLOAT32,
    Contestant("float32, Inductor", _inductor),
    Contestant("bfloat16, Inductor", _bfloat16),
    Contestant("int8mixed", int8mixed()),
    Contestant("int8mixed, free_weights", int8mixed(free_weights=True)),
    Contestant("int8mixed on the bfloat16 model", _int8mixed_bfloat16),
    Contestant("bitsandbytes Linear8bitLt, threshold 6", quantizers.bitsandbytes),
    Contestant("torchao int8 dynamic, Inductor", _torchao),
    Contestant("torch quantize_dynamic", quantizers.quantize_dynamic),
)
# For the choice of the default: which features count as outliers, and what their columns are multiplied with.
OUTLIERS = (
    FLOAT32,
    Contestant("column, original weights", int8mixed(outliers="column")),
    Contestant("token, original weights", int8mixed(outliers="token")),
    Contestant("column, dequantized weights", int8mixed(outliers="column", outlier_weights="dequantized")),
    Contestant("token, dequantized weights", int8mixed(outliers="token", outlier_weights="dequantized")),
    Contestant("no outlier branch: threshold=0.0", int8mixed(threshold=0.0)),
)
