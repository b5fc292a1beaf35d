"""Loss of a language model on documents that it was not trained on."""

import torch
from torch import Tensor

from train.language.objective import KINDS
from train.language.packing import PackedSequences, Steps
from train.runtime.distributed import summed
from train.runtime.precision import autocast


@torch.no_grad()
def held_out_loss(
    learner: torch.nn.Module,
    sequences: PackedSequences,
    count: int,
    micro: int,
    precision: str,
    device: torch.device,
    rank: int = 0,
    world: int = 1,
) -> dict[str, float]:
    """Compute the mean cross-entropy of each kind of token, and of "all", in nats.

    Args:
        learner: train.language.loss.LMLearner, as it is called in training.
        sequences: the packed documents.
        count: largest number of sequences, on all ranks together.
        micro: sequences that go through the model together.
        precision: "auto", "bf16" or "fp32".
        device: of this process.
        rank: of this process.
        world: number of ranks.
    """
    count = min(count, len(sequences.plan(0).sequences))
    share = -(-count // world)
    totals = torch.zeros(2, len(KINDS) + 1, device=device)
    learner.eval()
    before = rank * share
    for part in Steps(sequences, share * world, micro, rank=rank, world=world)[0].parts:
        # Every process makes as many passes, or the others would wait for ever; what is beyond the last does not count.
        part.kinds[max(0, count - before) :] = 0
        before += len(part.kinds)
        with autocast(precision, device):
            losses = learner(part.to(device))
        totals += torch.stack([losses.sums, losses.counts])
    learner.train()
    summed(totals)
    return by_kind(*totals) | {"all": (totals[0, 1:].sum() / totals[1, 1:].sum()).item()}


def by_kind(sums: Tensor, counts: Tensor) -> dict[str, float]:
    """Return the mean cross-entropy of each kind of token that occurred.

    Args:
        sums: summed cross-entropies, [1 + len(KINDS)]; the first, of ignored tokens, is left out.
        counts: numbers of targets, likewise.
    """
    pairs = zip(KINDS, sums[1:].tolist(), counts[1:].tolist(), strict=True)
    return {kind: total / count for kind, total, count in pairs if count}
