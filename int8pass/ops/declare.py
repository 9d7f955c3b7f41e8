"""How an op of int8pass:: is declared: once, its schema, shape function and default implementation together."""

from collections.abc import Callable

import torch

from int8pass.torch_private import OpOverload

NAMESPACE = "int8pass"
LIBRARY = torch.library.Library(NAMESPACE, "DEF")

# op -> function of the same arguments in plain tensor operations
DECOMPOSITIONS: dict[OpOverload, Callable] = {}


def define(schema: str, fake: Callable, implementation: Callable) -> OpOverload:
    name = schema.partition("(")[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=LIBRARY)
    return getattr(getattr(torch.ops, NAMESPACE), name).default
