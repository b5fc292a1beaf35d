"""The colour of an image, measured: which of eleven basic colours (Berlin and Kay, 1969) covers most of it."""

import numpy as np

# Focal colours in sRGB. Several for those whose range is wide.
PROTOTYPES: dict[str, tuple[tuple[int, int, int], ...]] = {
    "black": ((20, 20, 20), (50, 50, 55)),
    "white": ((255, 255, 255), (232, 235, 240)),
    "grey": ((128, 128, 128), (170, 175, 180), (90, 95, 100)),
    "red": ((215, 30, 40), (170, 20, 30), (240, 80, 75)),
    "orange": ((250, 140, 20), (240, 110, 40)),
    "yellow": ((255, 220, 50), (250, 200, 40), (255, 235, 130)),
    "green": ((60, 160, 60), (120, 190, 60), (30, 110, 50), (140, 210, 130)),
    "blue": ((40, 100, 210), (80, 170, 240), (30, 60, 140), (130, 200, 250)),
    "purple": ((130, 60, 170), (170, 110, 210), (90, 40, 120)),
    "pink": ((250, 150, 190), (240, 90, 160), (250, 190, 210)),
    "brown": ((120, 75, 45), (160, 110, 70), (85, 55, 40)),
}
NAMES = tuple(PROTOTYPES)
SHARE = 0.45  # an image has no colour of its own unless one covers this much of it


def lab(rgb: np.ndarray) -> np.ndarray:
    """sRGB in [0, 1] -> CIE L*a*b* under D65 (IEC 61966-2-1; CIE 15).

    Args:
        rgb: [..., 3].

    Returns:
        [..., 3].
    """
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    )
    xyz = linear @ to_xyz.T / np.array([0.95047, 1.0, 1.08883])
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


_OWNERS = np.array([i for i, name in enumerate(NAMES) for _ in PROTOTYPES[name]])
_POINTS = lab(np.array([p for name in NAMES for p in PROTOTYPES[name]]) / 255)


def main_colour(rgba: np.ndarray) -> str | None:
    """The name of the colour that covers at least `SHARE` of the opaque pixels, or None.

    Args:
        rgba: [H, W, 4] uint8.
    """
    pixels = rgba[rgba[..., 3] > 127][:, :3]  # [P, 3]
    if len(pixels) == 0:
        return None
    distances = ((lab(pixels / 255)[:, None] - _POINTS) ** 2).sum(-1)  # [P, prototypes]
    counts = np.bincount(_OWNERS[distances.argmin(1)], minlength=len(NAMES))
    best = int(counts.argmax())
    return NAMES[best] if counts[best] >= SHARE * len(pixels) else None
