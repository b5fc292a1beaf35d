"""The image tokenizer: images to codes and back. It is independent of text and token ids."""

from tokenizer_image.config import PRESETS, VQConfig
from tokenizer_image.tokenizer import ImageTokenizer
from tokenizer_image.vqgan import VQModel, count_parameters

__all__ = ["PRESETS", "ImageTokenizer", "VQConfig", "VQModel", "count_parameters"]
