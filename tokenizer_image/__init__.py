"""Pictures <-> codes. Knows nothing of text or of token ids."""

from tokenizer_image.tokenizer import ImageTokenizer
from tokenizer_image.vqgan import PRESETS, VQConfig, VQModel

__all__ = ["PRESETS", "ImageTokenizer", "VQConfig", "VQModel"]
