"""Random numbers that depend on a place alone, so that a resumed run repeats them."""

import numpy as np
import torch


def generator(seed: int, *place: int) -> torch.Generator:
    """Of a step and a process, say."""
    state = np.random.SeedSequence((seed, *place)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))
