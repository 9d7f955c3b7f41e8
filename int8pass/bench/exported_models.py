"""Whole models outside PyTorch: exported to ONNX once, then quantized by ONNX Runtime or by nncf for OpenVINO."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from int8pass.bench import onnx_runtime, openvino_int8
from int8pass.bench.measure import Unavailable, quiet

_NO_CACHE = "not available: exported without a cache of keys and values, for prefill only"
Feed = Mapping[str, np.ndarray]


class _LastLogits(nn.Module):
    """ids int64[B, S] to float32[B, V], the logits of the last position."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids):
        return self.model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[:, -1]


class _LastHidden(nn.Module):
    """A BERT encoder as a function of what its tokenizer gives: float32[B, S, H]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids, token_type_ids, attention_mask):
        tokens = {"input_ids": input_ids, "token_type_ids": token_type_ids, "attention_mask": attention_mask}
        return self.model(**tokens).last_hidden_state


class Decoder:
    """`decoders.Decoder` for prefill alone; one export for each batch size."""

    def __init__(self, kind: str, model: nn.Module, threads: int) -> None:
        self._kind, self._module, self._threads = kind, _LastLogits(model), threads
        self._runs: dict[tuple, Callable[[Feed], np.ndarray]] = {}

    def prefill(self, ids: Tensor) -> Tensor:
        shape = tuple(ids.shape)
        if shape not in self._runs:
            self._runs[shape] = _engine(self._kind, self._module, {"ids": ids}, None, self._threads)
        return torch.from_numpy(self._runs[shape]({"ids": ids.numpy()}))

    def next(self, token: Tensor) -> Tensor:
        raise Unavailable(_NO_CACHE)

    def rewind(self, length: int) -> None:
        raise Unavailable(_NO_CACHE)


def encoder(kind: str, model: nn.Module, threads: int, tokens: Mapping[str, Tensor]) -> Callable:
    """A function of keyword tensors like the model, for any batch and length; `tokens` are an example."""
    dynamic = {name: {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for name in tokens}
    run = _engine(kind, _LastHidden(model), tokens, dynamic, threads)

    def call(**given: Tensor) -> SimpleNamespace:
        hidden = run({name: tensor.numpy() for name, tensor in given.items()})
        return SimpleNamespace(last_hidden_state=torch.from_numpy(hidden))

    return call


def _engine(kind: str, module: nn.Module, example: Mapping[str, Tensor], dynamic: Any, threads: int) -> Callable:
    with tempfile.TemporaryDirectory() as folder, quiet():
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            module,
            (),
            path,
            kwargs=dict(example),
            dynamic_shapes=dynamic,
            dynamo=True,
            verbose=False,
            external_data=True,
        )
        if kind == "onnxruntime":
            session = onnx_runtime.quantized_session(path, threads)
            return lambda feed: session.run(None, feed)[0]
        feed = {name: tensor.numpy() for name, tensor in example.items()}
        return _openvino(path, threads, [feed] if kind == "openvino-static" else None)


def _openvino(path: Path, threads: int, calibration: Sequence[Feed] | None) -> Callable[[Feed], np.ndarray]:
    """Weights alone in int8, or activations too, calibrated on these inputs."""
    import nncf
    import openvino

    model = openvino.convert_model(path)
    if calibration is None:
        model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
    else:
        model = nncf.quantize(model, nncf.Dataset(calibration), model_type=nncf.ModelType.TRANSFORMER)
    compiled = openvino_int8.compiled(model, threads, torch.float32)
    request = compiled.create_infer_request()
    return lambda feed: request.infer(feed, share_inputs=True, share_outputs=False)[0]
