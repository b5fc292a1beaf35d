"""Loss of a language model on documents that it was not trained on."""

import torch
from torch import Tensor

from train.language.objective import KINDS
from train.language.packing import Rows, Steps
from train.runtime.distributed import summed
from train.runtime.precision import autocast


@torch.no_grad()
def held_out_loss(
    learner: torch.nn.Module,
    rows: Rows,
    count: int,
    micro: int,
    precision: str,
    device: torch.device,
    rank: int = 0,
    world: int = 1,
) -> dict[str, float]:
    """Mean cross-entropy in nats of each kind of token, and of "all".

    Args:
        learner: train.language.loss.Learner, as it is called in training.
        rows: of the documents.
        count: of them, at most, shared by all processes.
        micro: rows that go through the model together.
        precision: as in Config.
        device, rank, world: this process.
    """
    count = min(count, len(rows.plan(0).rows))
    share = -(-count // world)
    totals = torch.zeros(2, len(KINDS) + 1, device=device)
    learner.eval()
    before = rank * share
    for part in Steps(rows, share * world, micro, rank=rank, world=world)[0].parts:
        # Every process makes as many passes, or the others would wait for ever; rows beyond the last count nothing.
        part.kinds[max(0, count - before) :] = 0
        before += len(part.kinds)
        with autocast(precision, device):
            losses = learner(part.to(device))
        totals += torch.stack([losses.sums, losses.counts])
    learner.train()
    summed(totals)
    return by_kind(*totals) | {"all": (totals[0, 1:].sum() / totals[1, 1:].sum()).item()}


def by_kind(sums: Tensor, counts: Tensor) -> dict[str, float]:
    """Mean cross-entropy of each kind of token that there was."""
    pairs = zip(KINDS, sums[1:].tolist(), counts[1:].tolist(), strict=True)
    return {kind: total / count for kind, total, count in pairs if count}
