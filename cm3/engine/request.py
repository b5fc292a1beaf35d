"""What the engine is asked for: one Request for each text, image or document to generate."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from cm3.engine.guidance import Guide
from cm3.engine.options import SamplingConfig, check_bias
from cm3.tokens.alphabet import Alphabet
from cm3.tokens.grammar import Mode


@dataclass(frozen=True)
class Request:
    """One generation.

    Attributes:
        prompt: ids to continue.
        mode: what is generated: "text", "image" or "document" (tokens/grammar.py).
        max_new_tokens: new ids at most. An image that has begun is always finished.
        sampling: temperature, top-k and top-p.
        guide: how the logits of the extra prompts count (guidance.py).
        extra_prompts: in the guide's order, each the prompt with less of a condition. A guide that is off needs none.
        given: for mode "image": the ids of codes that are fixed, h*w of them row by row, None for a code to generate.
        seed: of this request's random numbers, 0 to 2^63 - 1.
        expected: for mode "image": ids of codes whose logits grow by `logit_bias` after guidance, each at its grid
            position.
        logit_bias: in nats.
        alphabet: generated text has only letters of this alphabet.

    Raises:
        ValueError: a value is outside its limits, or the number of extra prompts does not fit the guide.
    """

    prompt: list[int]
    mode: Mode = "document"
    max_new_tokens: int = 256
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    guide: Guide | None = None
    extra_prompts: Sequence[list[int]] = ()
    given: Sequence[int | None] | None = None
    seed: int = 0
    expected: Sequence[int] | None = None
    logit_bias: float = 0.0
    alphabet: Alphabet | None = None

    def __post_init__(self) -> None:
        check_bias("logit_bias", self.logit_bias)
        if not self.prompt:
            raise ValueError("the prompt has no ids: it begins at least with <eos>")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, but is {self.max_new_tokens}")
        wanted = 0 if self.guide is None else self.guide.num_extra
        if len(self.extra_prompts) != wanted and not (
            self.guide is not None and self.guide.off and not self.extra_prompts
        ):
            raise ValueError(
                f"{self.guide or 'no guide'} needs {wanted} extra prompts, but got {len(self.extra_prompts)}"
            )
        if not all(self.extra_prompts):
            raise ValueError("an extra prompt has no ids: it begins at least with <eos>")
