"""`Int8Linear`, a Linear that holds its weight as int8 only, and `quantize_`, which puts it into a model."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from int8pass.capture import embedding_addresses
from int8pass.composition import call_op, int8_mixed_linear
from int8pass.config import Int8MixedConfig
from int8pass.errors import ConfigError, WeightError
from int8pass.passes.select_linear import DTYPES, name_refusal
from int8pass.program import ModuleTensor
from int8pass.quantization.groups import scale_of_each
from int8pass.quantization.scheme import DEFAULT, Scheme
from int8pass.weights import quantize_weight

logger = logging.getLogger(__name__)


class Int8Linear(nn.Module):
    """y = x @ W.T + bias as LLM.int8() computes it (section 3.2), with W stored as int8 codes and one scale a row.

    weight: int8[N, K]; scale: float32[N], or [N, groups]; code_sums: int32 like it, for schemes with a zero point, else
    None; bias: [N] or None. x: [..., K] float16, bfloat16 or float32; the result has x's dtype, or autocast's. Outlier
    columns are dequantized from int8. A floating weight in a state_dict is quantized while it is loaded, so a model
    built on the meta device never holds its float weights at once:

        with torch.device("meta"):
            model = int8pass.quantize_(build_model())
        model.load_state_dict(float_state_dict, assign=True)

    transposed: floating weights come as [K, N] (transformers' Conv1D); the int8 weight is [N, K] all the same.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        scheme: str | Scheme = DEFAULT,
        threshold: float | None = None,
        outliers: str = "column",
        transposed: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        config = Int8MixedConfig(scheme=scheme, threshold=threshold, outliers=outliers)
        self.in_features = in_features
        self.out_features = out_features
        self.scheme = config.scheme
        self.threshold = config.threshold
        self.outliers = config.outliers
        self.transposed = transposed
        self.register_buffer("weight", torch.zeros((out_features, in_features), dtype=torch.int8, device=device))
        scales = self.scheme.weights.scale_shape(out_features, in_features)
        self.register_buffer("scale", torch.zeros(scales, dtype=torch.float32, device=device))
        sums = torch.zeros(scales, dtype=torch.int32, device=device)
        self.register_buffer("code_sums", None if self.scheme.activations.symmetric else sums)
        self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype)) if bias else None

    @classmethod
    def from_linear(
        cls,
        linear: nn.Module,
        *,
        scheme: str | Scheme = DEFAULT,
        threshold: float | None = None,
        outliers: str = "column",
    ) -> "Int8Linear":
        """Quantize an nn.Linear, or a transformers Conv1D. The bias is shared, not copied. Raises WeightError."""
        transposed = is_conv1d(linear)
        weight = linear.weight.t() if transposed else linear.weight
        module = cls(
            weight.shape[1],
            weight.shape[0],
            bias=False,
            scheme=scheme,
            threshold=threshold,
            outliers=outliers,
            transposed=transposed,
            device="meta",
        )
        module.bias = linear.bias
        module.train(linear.training)
        if weight.is_meta:
            return module
        for name, tensor in module._quantized(weight).items():
            setattr(module, name, tensor)
        return module

    def _quantized(self, weight: Tensor) -> dict[str, Tensor]:
        """The buffers of a floating weight [N, K]. Raises WeightError."""
        with torch.no_grad():
            quantized = quantize_weight(weight, self.scheme.weights)
        sums = {} if self.code_sums is None else {"code_sums": quantized.code_sums}
        return {"weight": quantized.codes, "scale": quantized.scale, **sums}

    def forward(self, x: Tensor) -> Tensor:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        return int8_mixed_linear(
            call_op,
            x,
            self._weight_part,
            self.bias,
            scheme=self.scheme,
            threshold=self.threshold,
            outliers=self.outliers,
            dtype=dtype,
            differentiable=torch.is_grad_enabled(),
        )

    def _weight_part(self, name: str) -> Tensor:
        return getattr(self, "weight" if name == "codes" else name)

    def dequantized(self) -> Tensor:
        """The weight as float32[N, K]."""
        return self.weight.to(torch.float32) * scale_of_each(self.scale, self.in_features)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"scheme={self.scheme.name!r}, threshold={self.threshold}, outliers={self.outliers!r}"
        )

    def _apply(self, fn, recurse: bool = True):
        scale = self.scale
        super()._apply(fn, recurse)
        if self.scale.dtype != torch.float32:  # .half() and .to(dtype) are about activations, not scales
            self.scale = scale.to(self.scale.device)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        weight = state_dict.get(f"{prefix}weight")
        if isinstance(weight, Tensor) and weight.is_floating_point():
            for name, tensor in self._quantized(weight.t() if self.transposed else weight).items():
                state_dict[f"{prefix}{name}"] = tensor
        super()._load_from_state_dict(state_dict, prefix, *args)


def is_conv1d(module: nn.Module) -> bool:
    """Whether a module is transformers' Conv1D: a Linear whose weight is [K, N]."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def quantize_(model: nn.Module, *, options: Mapping[str, Any] | Int8MixedConfig | None = None) -> nn.Module:
    """Replace every nn.Linear and transformers Conv1D of `model` by an Int8Linear, in place; returns the model.

    options: scheme, threshold, outliers, skip_modules and skip_modules_default count, see Int8MixedConfig. Each skipped
    Linear is logged with its reason. Raises ConfigError where the model itself is a Linear (use
    Int8Linear.from_linear), or outlier_weights="original" is asked for, since no float weight is kept.
    """
    config = Int8MixedConfig.from_options(options)
    config.require_break_even_off("quantize_")
    if config.outlier_weights == "original":
        raise ConfigError("quantize_ keeps no float weights, so outlier_weights='original' is not possible here")
    if config.profile is not None and config.profile.rounded is not None:
        raise ConfigError(
            "quantize_ takes no weights from a profile: its modules find outlier columns in each call, and quantize "
            "what is loaded into them; use convert or torch.compile"
        )
    if config.activations == "static":
        raise ConfigError(
            "an Int8Linear finds the ranges of its input in each call: activations='static' needs the pass"
        )
    if _is_linear(model):
        raise ConfigError("the model is itself a Linear, which cannot be replaced in place: use Int8Linear.from_linear")
    tied = embedding_addresses(model)
    for names in _places_of_linears(model):  # a Linear in several places becomes one Int8Linear
        made = _int8_or_same(model.get_submodule(names[0]), names[0], config, tied)
        for name in names:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, made)
    _leave_fused_encoders(model)
    return model


def _places_of_linears(model: nn.Module) -> list[list[str]]:
    """The dotted names of each Linear. Names alone, so that each float weight is released once it is replaced."""
    places: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if _is_linear(module):
            places.setdefault(id(module), []).append(name)
    return list(places.values())


def _is_linear(module: nn.Module) -> bool:
    return type(module) is nn.Linear or is_conv1d(module)


def _int8_or_same(linear: nn.Module, name: str, config: Int8MixedConfig, tied: frozenset[int]) -> nn.Module:
    """The Linear as an Int8Linear, or itself where it is skipped."""
    reason = name_refusal(config, ModuleTensor(f"{name}.weight", linear.weight), tied)
    if not reason and linear.weight.dtype not in DTYPES:
        reason = f"the weight is {linear.weight.dtype}"
    if not reason:
        try:
            return Int8Linear.from_linear(
                linear, scheme=config.scheme, threshold=config.threshold, outliers=config.outliers
            )
        except WeightError as error:
            reason = str(error)
    logger.debug("%s: %s", name, reason)
    return linear


def _leave_fused_encoders(model: nn.Module) -> None:
    """nn.TransformerEncoder's fused kernels read the float weights past the modules: let it call the modules."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            if any(isinstance(linear, Int8Linear) for linear in (module.linear1, module.linear2)):
                module.activation_relu_or_gelu = 0
        elif isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
