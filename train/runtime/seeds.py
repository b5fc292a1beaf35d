"""Random generators that depend on the seed and a place alone, so that a resumed run repeats them."""

import numpy as np
import torch


def generator(seed: int, *place: int) -> torch.Generator:
    """Return the generator of a place, such as (step, rank)."""
    state = np.random.SeedSequence((seed, *place)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))
