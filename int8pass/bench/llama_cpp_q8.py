"""llama.cpp in Q8_0 through its Python package: a GPT-2 written to GGUF with the model's own weights.

Q8_0 quantizes blocks of 32 weights, and activations at run time. The embeddings, which are the head too, stay float32,
as in the other contestants.
"""

import ctypes
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from int8pass.bench.measure import Unavailable

_PARTS = {  # transformers' name of a module: llama.cpp's
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}


def write_gpt2(model: nn.Module, path: Path) -> None:
    """Write a transformers GPT2LMHeadModel as GGUF: matrices Q8_0, all else float32. Without a vocabulary."""
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.n_positions)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(config.n_inner or 4 * config.n_embd)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_tokenizer_model("none")
    body = model.transformer
    for name, tensor in (("token_embd", body.wte.weight), ("position_embd", body.wpe.weight)):
        writer.add_tensor(f"{name}.weight", tensor.float().numpy())
    _add_norm(writer, "output_norm", body.ln_f)
    for index, block in enumerate(body.h):
        for source, target in _PARTS.items():
            module = block.get_submodule(source)
            name = f"blk.{index}.{target}"
            if isinstance(module, nn.LayerNorm):
                _add_norm(writer, name, module)
                continue
            matrix = module.weight.t().contiguous().float().numpy()  # Conv1D holds [K, N]
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(f"{name}.weight", gguf.quants.quantize(matrix, kind), raw_dtype=kind)
            writer.add_tensor(f"{name}.bias", module.bias.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_norm(writer: object, name: str, norm: nn.LayerNorm) -> None:
    writer.add_tensor(f"{name}.weight", norm.weight.float().numpy())
    writer.add_tensor(f"{name}.bias", norm.bias.float().numpy())


class LlamaDecoder:
    """The interface of `decoders.Decoder` over llama.cpp."""

    def __init__(self, model: nn.Module, threads: int, batch: int, length: int) -> None:
        import llama_cpp

        if model.config.model_type != "gpt2":
            raise Unavailable(f"not available: llama.cpp has no {model.config.model_type} architecture")
        self._api = llama_cpp
        self._log = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._log, ctypes.c_void_p(0))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.gguf"
            write_gpt2(model, path)
            settings = llama_cpp.llama_model_default_params()
            settings.use_mmap = False  # the file goes
            self._model = llama_cpp.llama_model_load_from_file(os.fsencode(path), settings)
        if not self._model:
            raise RuntimeError("llama.cpp did not load the GGUF file")
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = batch * length
        settings.n_batch = batch * length
        settings.n_seq_max = batch
        settings.n_threads = settings.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, settings)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._vocabulary = model.config.vocab_size
        self._position = 0

    def prefill(self, ids: Tensor) -> Tensor:
        self._api.llama_memory_clear(self._memory, False)
        self._position = ids.shape[1]
        return self._decode(ids, 0)

    def rewind(self, length: int) -> None:
        self._api.llama_memory_seq_rm(self._memory, 0, length, -1)
        self._position = length

    def next(self, token: Tensor) -> Tensor:
        self._position += 1
        return self._decode(token, self._position - 1)

    def _decode(self, ids: Tensor, position: int) -> Tensor:
        """Run ids [B, S] at this position of B sequences: float32 logits [B, V] of the last ones."""
        length = ids.shape[1]
        batch = self._api.llama_batch_init(ids.numel(), 0, 1)
        last = []
        for index, token in enumerate(ids.flatten().tolist()):
            sequence, offset = divmod(index, length)
            batch.token[index] = token
            batch.pos[index] = position + offset
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = sequence
            batch.logits[index] = offset == length - 1
            last += [index] if offset == length - 1 else []
        batch.n_tokens = ids.numel()
        status = self._api.llama_decode(self._context, batch)
        self._api.llama_batch_free(batch)
        if status:
            raise RuntimeError(f"llama_decode returned {status}")
        pointers = (self._api.llama_get_logits_ith(self._context, index) for index in last)
        rows = [np.ctypeslib.as_array(pointer, shape=(self._vocabulary,)).copy() for pointer in pointers]
        return torch.from_numpy(np.stack(rows))
