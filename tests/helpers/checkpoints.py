"""A tiny model with its optimizers, and checkpoints of it."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def network(width: int = 4, seed: int = 0) -> nn.Sequential:
    """A matrix that Muon trains, one that is frozen, a layer for AdamW."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, width, bias=False), nn.Linear(width, 4), nn.Linear(4, 4))
    model[1].requires_grad_(False)
    return model


def optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    one, _, two = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return [
        torch.optim.Muon([one.weight], 0.02, 0.1, adjust_lr_fn="original"),
        torch.optim.AdamW(two.parameters(), 0.01, betas=(0.9, 0.95), weight_decay=0.1, fused=True),
    ]


def train(model: nn.Module, by: list[torch.optim.Optimizer], first: int, last: int) -> None:
    for step in range(first, last):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        model(x).square().mean().backward()
        for optimizer in by:
            optimizer.step()
            optimizer.zero_grad()


def contents(model: nn.Module, by: list[torch.optim.Optimizer]) -> dict[str, Any]:
    found: dict[str, Any] = {name: whole(value) for name, value in model.state_dict().items()}
    for i, optimizer in enumerate(by):
        for j, state in optimizer.state_dict()["state"].items():
            found |= {f"{i}.{j}.{name}": whole(value) for name, value in state.items()}
    return found


def whole(value: Any) -> Tensor:
    return (value.full_tensor() if hasattr(value, "full_tensor") else value).detach().clone()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def tensor(value: float, size: int = 3) -> dict[str, Any]:
    return {"part": {"x": torch.full((size,), float(value))}}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def damage(folder: Path, how: str) -> None:
    data = folder / "__0_0.distcp"
    content = bytearray(data.read_bytes())
    if how == "cut":
        data.write_bytes(content[:-10])
    elif how == "flipped":
        content[len(content) // 2] ^= 1
        data.write_bytes(content)
    else:
        (folder / how).unlink()
