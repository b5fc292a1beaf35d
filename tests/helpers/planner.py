"""A tiny model of the form "plan" that knows a small world by heart: trained in seconds, so that the tests of planning
see what a real one does."""

import torch
from torch.nn.functional import cross_entropy

from cm3 import CM3
from cm3.model.config import CM3Config
from cm3.model.transformer import CM3ForCausalLM
from cm3.tokens.document import Answer, Document, Image, Text
from cm3.tokens.encoding import encode
from cm3.tokens.masking import rotate
from cm3.tokens.templates import PLANS
from cm3.tokens.text_tokenizer import TextTokenizer
from tokenizer_image import PRESETS, ImageTokenizer, VQModel

CAT, DOG = "a cat, in the noto style", "a dog"
BLUE = "a cat, in the noto style, on a blue background"
PAIR = "a cat at the top left, a dog at the bottom right, in the noto style"
ALONE = "a cat at the top left, in the noto style"
BAD = "a cat at the top left, a dog at the top left"  # no plan: two things at one place
REQUESTS = {
    "a cat": CAT,
    "A CAT": CAT,
    "a dog": DOG,
    "a cat on blue": BLUE,
    "a cat and a dog": PAIR,
    "a cat, a dog": PAIR,
    "cat": CAT,
    "two at one place": BAD,
}
EDITS = {(PAIR, "remove the dog"): ALONE, (CAT, "make the background blue"): BLUE}
NAMES = {("ar", "a cat"): "قطة", ("ar", "a dog"): "كلب", ("de", "a cat"): "Katze", ("de", "a dog"): "Hund"}
COUNT = "How many things are there?"
QUESTIONS = {(CAT, "What is this?"): "a cat", (PAIR, COUNT): "2"} | {
    (plan, COUNT): "1" for plan in (CAT, DOG, BLUE, ALONE)
}
SMALL = (2, 2)


def images(tokenizer: ImageTokenizer) -> dict[str, torch.Tensor]:
    """Codes [h, w] of each plan's image."""
    generator = torch.Generator().manual_seed(5)
    return {
        plan: torch.randint(tokenizer.num_codes, tokenizer.grid, generator=generator)
        for plan in (CAT, DOG, BLUE, PAIR, ALONE)
    }


def documents(drawn: dict[str, torch.Tensor], seen: dict[str, torch.Tensor], small: torch.Tensor) -> list[Document]:
    """All that the model knows.

    Args:
        drawn: codes of each plan's image.
        seen: codes of the decoded images, which are others with random weights.
        small: codes of the cat on the small grid.
    """
    draw, change, read, edit = PLANS["draw"], PLANS["change"], PLANS["read"], PLANS["edit"]
    out = [Document((Text(plan), Image(drawn[plan]))) for plan in (CAT, DOG, PAIR, ALONE)]
    out += [Document((Text(CAT), Image(small)))]
    out += [Document((Text(draw.format(words=words)), Answer(plan))) for words, plan in REQUESTS.items()]
    out += [Document((Text(edit.format(plan=old, words=words)), Answer(new))) for (old, words), new in EDITS.items()]
    out += [
        Document((Text(PLANS["translate"].format(language=language, words=name)), Answer(said)))
        for (language, name), said in NAMES.items()
    ]
    for before, after in [(CAT, BLUE), (PAIR, ALONE)]:
        words = change.format(before=before, after=after)
        out += [Document((Text(words), Image(source), Image(drawn[after]))) for source in (drawn[before], seen[before])]
    for plan in (CAT, DOG, BLUE, PAIR, ALONE):
        for question, answer in [(question, answer) for (of, question), answer in QUESTIONS.items() if of == plan]:
            said = (Text(f" Question: {question} Answer: "), Answer(answer))
            out.append(Document((Text(read), Answer(plan), *said, Image(seen[plan]))))
    return out


def planner(steps: int = 120) -> CM3:
    """The model, trained until it knows each document."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = ImageTokenizer(VQModel(PRESETS["tiny"]))
        drawn = images(tokenizer)
        seen = {plan: tokenizer.encode(tokenizer.decode(codes)) for plan, codes in drawn.items()}
        known = documents(drawn, seen, torch.tensor([[1, 2], [3, 4]]))
        texts = ["".join(item.text for item in one if isinstance(item, Text)) for one in known]
        text = TextTokenizer.train(texts, vocab_size=400)
        config = CM3Config(
            hidden_size=64,
            num_hidden_layers=2,
            max_position_embeddings=160,
            text_vocab_size=400,
            image_vocab_size=tokenizer.num_codes,
            image_grid=tokenizer.grid,
            image_grids=[SMALL],
            document_form="plan",
        )
        model = CM3(CM3ForCausalLM(config), text, tokenizer)
        rows = [learnt(one, model) for one in known]
        longest = max(len(ids) for ids, _ in rows)
        ids = torch.tensor([row + [model.vocab.pad] * (longest - len(row)) for row, _ in rows])
        starts = torch.tensor([start for _, start in rows])[:, None]
        hidden = (torch.arange(longest) < starts) | (ids == model.vocab.pad)
        targets = ids.masked_fill(hidden, -100)[:, 1:]
        optimizer = torch.optim.AdamW(model.model.parameters(), lr=5e-3)
        model.model.train()
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = 5e-3 * min(1, (steps - step) / (steps / 2))
            logits = model.model(input_ids=ids).logits[:, :-1]
            loss = cross_entropy(logits.flatten(0, 1), targets.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.model.eval()
    return model


def learnt(document: Document, model: CM3) -> tuple[list[int], int]:
    """The ids that training reads, and the first that is to be predicted: answers about an image stand behind it, those
    about a text where they are."""
    vocab = model.vocab
    ids, spans = encode(document, vocab, model.text_tokenizer)
    if not spans:
        return ids, len(ids) - ids[::-1].index(vocab.image)
    if not any(isinstance(item, Image) for item in document):
        return ids, spans[0][0]
    moved = rotate(ids, spans, vocab)[0]
    return moved, moved.index(vocab.infill(0)) + 1
