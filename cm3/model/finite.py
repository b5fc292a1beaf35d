"""Finds the layer at which a model's values stop being finite."""

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle


@torch.inference_mode()
def first_not_finite(model: nn.Module, ids: Sequence[int]) -> str:
    """The error message for a model that gives NaN or infinity after these ids. It names the first such layer."""
    found: list[str] = []

    def check(name: str, _: nn.Module, __: Any, out: Any) -> None:
        if isinstance(out, torch.Tensor) and out.is_floating_point() and not found and not bool(out.isfinite().all()):
            found.append(name)

    # torch types these methods in part only.
    modules: list[tuple[str, Any]] = list(cast(Any, model).named_modules())
    hooks: list[RemovableHandle] = [
        module.register_forward_hook(partial(check, name))
        for name, module in modules
        if not any(True for _ in module.children())
    ]
    try:
        model(torch.tensor([list(ids)], device=next(model.parameters()).device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    where = f"the first is {found[0]}" if found else "though not when these ids are read alone"
    dtype = next(model.parameters()).dtype
    return f"the model gives NaN or infinity, {where}: its weights are damaged, or too large for {dtype}"
