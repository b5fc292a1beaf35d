"""The training loss: cross-entropy in chunks that never hold the logits of a whole batch, with z-loss.

Shapes: B sequences, T tokens in a sequence, N targets that count, D width, V vocabulary.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from train.language.objective import KINDS
from train.language.packing import Batch


class LMLosses(NamedTuple):
    """Losses of a batch.

    Attributes:
        total: the weighted sum to minimise.
        sums: sum of the unweighted cross-entropies of each TargetKind, [1 + len(KINDS)]; no gradient.
        counts: number of targets of each TargetKind, likewise.
    """

    total: Tensor
    sums: Tensor
    counts: Tensor


class ChunkedCrossEntropy(torch.autograd.Function):
    """hidden [N, D], head [V, D], targets [N], weights [N], z, chunk, bias [V] -> (total, errors [N]).

    total = sum of weights * (error + z * logsumexp^2): cross-entropy with z-loss (Chowdhery et al. 2022, PaLM, section
    5). The gradient is computed in the forward pass, chunk by chunk, so that no more than [chunk, V] logits are in
    memory. PyTorch's linear_cross_entropy exists in its newest versions only, and has no z-loss.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        targets: Tensor,
        weights: Tensor,
        z: float,
        chunk: int,
        bias: Tensor | None = None,
    ):
        device = hidden.device.type
        narrow = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        wanted = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        with torch.autocast(device, enabled=False):
            matrix = head.to(narrow)
            errors = hidden.new_empty(len(targets), dtype=torch.float32)
            total = hidden.new_zeros((), dtype=torch.float32)
            d_hidden = torch.empty_like(hidden) if wanted else None
            d_head = torch.zeros_like(head, dtype=torch.float32) if ctx.needs_input_grad[1] else None
            for start in range(0, len(targets), chunk):
                part = slice(start, start + chunk)
                inputs, wants, counts = hidden[part].to(narrow), targets[part, None], weights[part].float()
                logits = (inputs @ matrix.T).float()  # [chunk, V]
                logits = logits if bias is None else logits.add_(bias)
                log_sum = logits.logsumexp(-1)  # [chunk]
                errors[part] = log_sum - logits.gather(1, wants)[:, 0]
                total += (counts * (errors[part] + z * log_sum.square())).sum()
                if d_hidden is not None:
                    slope = logits.sub_(log_sum[:, None]).exp_()  # the softmax
                    slope *= (1 + 2 * z * log_sum)[:, None]
                    slope.scatter_add_(1, wants, -torch.ones_like(wants, dtype=slope.dtype))
                    slope = (slope * counts[:, None]).to(narrow)
                    d_hidden[part] = slope @ matrix
                    if d_head is not None:
                        d_head += (slope.T @ inputs).float()
        ctx.save_for_backward(d_hidden, d_head)
        ctx.head_dtype = head.dtype
        ctx.mark_non_differentiable(errors)
        return total, errors

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor):
        slope = slopes[0]
        d_hidden, d_head = ctx.saved_tensors
        return (d_hidden * slope, None if d_head is None else (d_head * slope).to(ctx.head_dtype), *[None] * 5)


def end_to_end(batch: Batch) -> dict[str, Any]:
    """Return the sequences as one, with the starts of its documents, for flash attention's varlen kernels.

    transformers finds packed documents by their positions in a batch of one sequence only; in a larger batch documents
    would attend to each other.
    """
    ids, positions = batch.ids.view(1, -1), batch.positions.view(1, -1)  # [1, B T]
    starts = (positions[0] == 0).nonzero()[:, 0].to(torch.int32)
    places = torch.cat([starts, starts.new_tensor([ids.shape[1]])])  # [documents + 1]
    longest = batch.ids.shape[1]  # a bound, known without asking the device
    return {
        "input_ids": ids,
        "position_ids": positions,
        "cu_seq_lens_q": places,
        "cu_seq_lens_k": places,
        "max_length_q": longest,
        "max_length_k": longest,
    }


class SampledCodes(NamedTuple):
    """The codes that a batch's codes compete with.

    Attributes:
        ids: the codes, [S].
        bias: added to their logits, [S].
        targets: the targets as indices into `ids`, [N].
    """

    ids: Tensor
    bias: Tensor
    targets: Tensor


def sampled_codes(targets: Tensor, codes: int, negatives: int) -> SampledCodes:
    """Sampled softmax (Jean et al. 2015, arXiv 1412.2007): all codes among the targets, and a sample of the others.

    The logit of each sampled code is raised by the logarithm of the number of codes that it stands for, so that the sum
    over all codes is estimated without bias. The sample depends on the targets only, so that a resumed run is the same.

    Args:
        targets: [N], in 0 .. codes - 1.
        codes: number of codes in the vocabulary.
        negatives: largest number of sampled codes.
    """
    present, places = targets.unique(return_inverse=True)
    others = torch.ones(codes, dtype=torch.bool, device=targets.device).index_fill_(0, present, False).nonzero()[:, 0]
    few = min(negatives, len(others))
    order = torch.arange(1, len(targets) + 1, device=targets.device)
    generator = torch.Generator().manual_seed(int((targets * order).sum()))
    sample = others[torch.randperm(len(others), generator=generator)[:few].to(others.device)]
    bias = torch.zeros(len(present) + few, device=targets.device)
    bias[len(present) :] = math.log(len(others) / few) if few else 0.0
    return SampledCodes(torch.cat([present, sample]), bias, places)


def cross_entropy(
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    weights: Tensor,
    z: float,
    chunk: int,
    first_code: int = 0,
    negatives: int = 0,
) -> tuple[Tensor, Tensor]:
    """Compute the weighted cross-entropy with z-loss.

    Args:
        hidden: [N, D].
        head: output layer, [V, D].
        targets: [N].
        weights: of the targets, [N].
        z: weight of the z-loss.
        chunk: targets whose logits are in memory at once.
        first_code: first id of an image code: codes then compete with codes only, other ids with each other. 0 = all
            ids compete.
        negatives: with first_code, number of sampled codes (`sampled_codes`); the losses of codes are then estimates.
            0 = all codes.

    Returns:
        The weighted total, and the cross-entropy of each target, [N].
    """
    if not first_code:
        return ChunkedCrossEntropy.apply(hidden, head, targets, weights, z, chunk)
    total, errors = hidden.new_zeros((), dtype=torch.float32), hidden.new_empty(len(targets), dtype=torch.float32)
    codes = targets >= first_code  # [N]
    for chosen, first, matrix in (codes, first_code, head[first_code:]), (~codes, 0, head[:first_code]):
        places = chosen.nonzero()[:, 0]
        wanted, bias = targets[places] - first, None
        if first and negatives:
            ids, bias, wanted = sampled_codes(wanted, len(matrix), negatives)
            matrix = matrix[ids]
        # Even without a target: under FSDP all ranks must do the same.
        part, of_part = ChunkedCrossEntropy.apply(hidden[places], matrix, wanted, weights[places], z, chunk, bias)
        total = total + part
        errors[places] = of_part
    return total, errors


def bridged_head(head: Tensor, embeddings: Tensor, bridge: Tensor) -> Tensor:
    """Return the output layer with the bridge: head [V, D], embeddings [V, D], bridge [D, D] -> [V, D]."""
    return head + embeddings @ bridge


class LMLearner(nn.Module):
    """A causal language model with its loss in one module, as DDP and FSDP need it.

    Args:
        model: CM3ForCausalLM, or any with `.model` (ids -> hidden) and `.lm_head`.
        z: weight of the z-loss.
        chunk: targets whose logits are in memory at once.
        first_code: as in `cross_entropy`.
        negatives: as in `cross_entropy`; without gradients all codes compete.
        bridged: learn a matrix, 0 at first, that adds the embeddings to the output layer. To copy an id, a model must
            map its embedding to its row of the output layer. Without the bridge it learns this for each id, with the
            bridge for all ids at once (after Pappas et al. 2018, arXiv 1808.10681).
    """

    def __init__(
        self,
        model: Any,
        z: float = 0.0,
        chunk: int = 256,
        first_code: int = 0,
        negatives: int = 0,
        bridged: bool = False,
    ):
        super().__init__()
        self.model: Any = model
        self.z, self.chunk, self.first_code, self.negatives = z, chunk, first_code, negatives
        width = model.lm_head.weight.shape[1]
        self.bridge = nn.Parameter(torch.zeros(width, width)) if bridged else None

    def compare_all(self) -> None:
        """Take the softmax over all ids from now on, as with a first_code of 0."""
        self.first_code = self.negatives = 0

    def head(self) -> Tensor:
        """Return the output layer with the bridge, [V, D], as the saved model has it."""
        head = self.model.lm_head.weight
        return head if self.bridge is None else bridged_head(head, self.model.model.embed_tokens.weight, self.bridge)

    def forward(self, batch: Batch) -> LMLosses:
        flash = "flash" in str(self.model.config._attn_implementation)
        inputs = end_to_end(batch) if flash else {"input_ids": batch.ids, "position_ids": batch.positions}
        states = self.model.model(**inputs, use_cache=False).last_hidden_state.view(*batch.ids.shape, -1)  # [B, T, D]
        counted = (
            batch.kinds[:, 1:].flatten().nonzero()[:, 0]
        )  # [N]: the output layer is half of the work where codes are many
        hidden = states[:, :-1].flatten(0, 1)[counted]  # [N, D]
        targets, kinds, weights = (
            field[:, 1:].flatten()[counted] for field in (batch.ids, batch.kinds, batch.weights)
        )  # [N]
        negatives = self.negatives if torch.is_grad_enabled() else 0
        total, errors = cross_entropy(
            hidden, self.head(), targets, weights, self.z, self.chunk, self.first_code, negatives
        )
        sums = torch.zeros(len(KINDS) + 1, device=errors.device).index_add_(0, kinds, errors)
        return LMLosses(total, sums, torch.bincount(kinds, minlength=len(KINDS) + 1))
