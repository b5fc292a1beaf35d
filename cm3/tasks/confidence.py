"""Confidence: how probable it is that a text about an image is right.

A text's mean log-probability under the model orders texts by how often they are right, but is no probability of that.
Calibration turns one into the other by logistic regression on held-out images (Platt 1999), as `python -m
train.calibrate` measures it. Its result is a file in the model folder, calibration.json.
"""

# torch leaves some of its functions without types.
# pyright: reportUnknownMemberType=false

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from cm3.checks import is_number
from cm3.engine.request import Request
from cm3.tasks.job import Piece
from cm3.tasks.rated_text import RatedText

if TYPE_CHECKING:  # the model's code takes seconds to import, and who reads a model folder needs no model
    from cm3.model.transformer import CM3ForCausalLM

CALIBRATION = "calibration.json"  # in a model folder

NOT_SURE = {
    **{"en": "not sure", "ar": "غير متأكد", "es": "no es seguro", "fr": "incertain", "de": "unsicher"},
    **{"it": "incerto", "pt": "incerto", "nl": "onzeker", "pl": "niepewne", "ru": "не уверен", "uk": "не впевнений"},
    **{"tr": "emin değil", "fa": "نامطمئن", "he": "לא בטוח", "ur": "یقینی نہیں", "hi": "निश्चित नहीं"},
    **{
        "bn": "নিশ্চিত নয়",
        "zh": "不确定",
        "ja": "不確か",
        "ko": "확실하지 않음",
        "vi": "không chắc",
        "id": "tidak yakin",
    },
    **{"th": "ไม่แน่ใจ", "sw": "sina uhakika"},
}


@dataclass(frozen=True)
class Calibration:
    """Turns the mean log-probability of a text into the probability that the text is right.

    Attributes:
        slope: of the logit, for each nat.
        offset: the logit of a text of log-probability 0.
        threshold: texts of a lower probability are marked as not sure.
    """

    slope: float
    offset: float
    threshold: float = 0.5

    def probability(self, log_prob: float) -> float:
        """The probability that a text of this mean log-probability is right."""
        return 1 / (1 + math.exp(min(-(self.slope * log_prob + self.offset), 700.0)))

    @classmethod
    def load(cls, folder: Path) -> "Calibration | None":
        """The calibration in a model folder; None where it has none.

        Raises:
            ValueError: the file is damaged.
        """
        path = folder / CALIBRATION
        if not path.exists():
            return None
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if not all(is_number(value) and math.isfinite(value) for value in values.values()):
                raise ValueError("a value is no finite number")
            return cls(**values)
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is damaged ({error}): fetch it again, or delete it") from error

    def save(self, folder: Path) -> None:
        (folder / CALIBRATION).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


Written = tuple[Request, Sequence[int]]  # a request and its new ids


@dataclass(frozen=True)
class Rater:
    """Rates the texts of a model.

    Attributes:
        log_prob: the mean log-probability of a request's new ids.
        calibration: the model's; None where it was not calibrated. Texts are not rated then.
    """

    log_prob: Callable[[Request, Sequence[int]], float]
    calibration: Calibration | None

    def check(self, threshold: float | None) -> None:
        """Raise a ValueError for a threshold that a model without calibration cannot fulfil."""
        if threshold and not self.calibration:
            raise ValueError(
                f"threshold is {threshold:g}, but this model is not calibrated: leave it out, or run "
                "python -m train.calibrate"
            )

    def rated(self, text: str, language: str, threshold: float | None, *written: Written) -> str:
        """The text with its probability, marked where that is below the threshold: "a cat (not sure)".

        Args:
            text: what was written.
            language: of the mark.
            threshold: None for the model's own.
            written: what the text was made from. The least likely part counts.
        """
        if self.calibration is None:
            return text
        log_prob = min(self.log_prob(request, ids) for request, ids in written)
        probability = self.calibration.probability(log_prob)
        least = self.calibration.threshold if threshold is None else threshold
        mark = f" ({NOT_SURE[language]})" if probability < least else ""
        return RatedText(text + mark, probability, log_prob, mark)


def marks(texts: Sequence[str]) -> list[Piece]:
    """The pieces that end streamed texts: the mark of each that has one."""
    return [Piece(i, text.mark) for i, text in enumerate(texts) if isinstance(text, RatedText) and text.mark]


@torch.inference_mode()
def mean_log_prob(model: "CM3ForCausalLM", request: Request, new: Sequence[int]) -> float:
    """The mean log-probability, in nats, of a request's new ids; minus infinity for none."""
    if not new:
        return -math.inf
    ids = torch.tensor([[*request.prompt, *new]], device=model.device)  # [1, T]
    logits = model(input_ids=ids, logits_to_keep=len(new) + 1).logits[0, :-1].float()  # [new, V]
    return float(logits.log_softmax(-1).gather(1, ids[0, -len(new) :, None]).mean())
