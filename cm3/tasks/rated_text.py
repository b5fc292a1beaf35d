"""Texts that carry a rating. This module does not import torch."""


class RatedText(str):
    """A text with the probability that it is right.

    Attributes:
        probability: from 0 to 1.
        log_prob: the mean log-probability that it was computed from, in nats.
        mark: the end of the text that says that the model is not sure; "" where it is.
    """

    probability: float
    log_prob: float
    mark: str

    def __new__(cls, text: str, probability: float, log_prob: float, mark: str = "") -> "RatedText":
        new = super().__new__(cls, text)
        new.probability, new.log_prob, new.mark = probability, log_prob, mark
        return new

    def __getnewargs__(self) -> tuple[str, float, float, str]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return str(self), self.probability, self.log_prob, self.mark


def with_words(rated: str, words: str) -> str:
    """Other words with the rating of a text, where it has one."""
    return RatedText(words, rated.probability, rated.log_prob, rated.mark) if isinstance(rated, RatedText) else words
