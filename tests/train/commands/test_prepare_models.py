"""Data are prepared for a model, and the model is trained on them: whole commands, grids, a model that takes turns."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image as PIL_Image

from captioned import CAPTIONS, documents, noise
from cm3.hf.convert import convert
from cm3.pipeline import CM3
from cm3.tokens.document import Image
from tests.helpers.chameleons import write_chameleon
from tokenizer_image import ImageTokenizer
from train.documents.shards import Shards
from train.documents.worker import PrepareOptions
from train.prepare import prepare
from train.runtime.config import override


def test_the_three_commands_make_a_model_that_draws_and_captions(folder: Path, tmp_path: Path):
    from train import image_tokenizer, lm

    vq = override(
        image_tokenizer.ImageTokenizerConfig(),
        {
            "data.folder": str(folder),
            "preset": "tiny",
            "steps": 2,
            "batch_size": 2,
            "optim.warmup_steps": 1,
            "precision": "fp32",
        },
    )
    image_tokenizer.train(vq, tmp_path / "vq")
    prepare(folder, tmp_path / "shards", PrepareOptions(str(tmp_path / "vq" / "model"), text_vocab=300, held_out=0))
    run = override(
        lm.LMConfig(),
        {
            "data.folder": str(tmp_path / "shards"),
            "preset": "tiny",
            "model": {"max_position_embeddings": 128},
            "data.seq_len": 128,
            "batch_tokens": 256,
            "steps": 2,
            "optim.warmup_steps": 1,
            "precision": "fp32",
            "samples.prompts": ("a red field",),
        },
    )
    model = CM3.from_pretrained(lm.train(run, tmp_path / "lm"))
    (drawing,) = model.generate("a red field")
    assert drawing.size == (16, 16)
    assert isinstance(model.caption(drawing), str)


def test_a_folder_with_too_few_images_cannot_train_a_tokenizer(tmp_path: Path):
    from train import image_tokenizer

    with pytest.raises(ValueError, match="at least two"):
        image_tokenizer.train(
            override(image_tokenizer.ImageTokenizerConfig(), {"data.folder": str(tmp_path), "preset": "tiny"}),
            tmp_path / "vq",
        )


SHAPED = "3x5 5x3"


def shaped_folder(root: Path) -> Path:
    """Square, wide and tall images."""
    root.mkdir()
    for i, size in enumerate([(16, 16), (12, 20), (20, 12), (13, 19), (40, 10)]):  # rows, columns
        (root / f"{i}.png").write_bytes(noise(i, size))
        (root / f"{i}.txt").write_text(CAPTIONS[i])
    return root


def test_images_take_the_nearest_grid(options: PrepareOptions, image: ImageTokenizer, tmp_path: Path):
    root = shaped_folder(tmp_path / "images")
    meta = prepare(root, tmp_path / "out", replace(options, grids=SHAPED))
    assert meta["vocab"]["image_grids"] == [[3, 5], [5, 3]]
    drawn = documents(tmp_path / "out")[::2]  # each is asked about in the next
    assert [item.grid for document in drawn for item in document if isinstance(item, Image)] == [
        *((4, 4), (3, 5), (5, 3), (3, 5), (5, 3))
    ]
    wide = PIL_Image.open(root / "1.png")
    assert torch.equal(drawn[1][1].codes, image.encode(wide, (12, 20)))


@pytest.mark.parametrize("grids", ["3x5 3x5", "4x4", "wide", "0x3", " ".join(f"1x{n}" for n in range(1, 30))])
def test_odd_grids_are_refused(grids: str, options: PrepareOptions, folder: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"--grids .* such as 6x10"):
        prepare(folder, tmp_path / "out", replace(options, grids=grids))
    with pytest.raises(ValueError, match="brings its grids"):
        prepare(folder, tmp_path / "out", replace(options, image_tokenizer="", model="emoji", grids=SHAPED))


def test_a_model_is_trained_on_them_and_draws_them(options: PrepareOptions, vq_folder: Path, tmp_path: Path):
    from train.language.config import LMConfig, Objective
    from train.language.run import train

    prepare(shaped_folder(tmp_path / "images"), tmp_path / "out", replace(options, grids=SHAPED, held_out=0))
    config = override(
        LMConfig(),
        {
            "data.folder": str(tmp_path / "out"),
            "image_tokenizer": str(vq_folder),
            "preset": "tiny",
            "steps": 3,
            "data.seq_len": 64,
            "batch_tokens": 256,
            "objective": Objective(inpainting=0.4),
            "samples.every": 0,
            "eval.every": 0,
        },
    )
    train(config, tmp_path / "run")
    model = CM3.from_pretrained(tmp_path / "run" / "model", device="cpu")
    assert model.vocab.grids == ((3, 5), (5, 3))
    assert model.generate("a red field", grid=(5, 3))[0].size == (12, 20)


def test_a_model_that_takes_turns_gets_documents_in_turns(options: PrepareOptions, tmp_path: Path):
    from train.language.objective import Form, Objective, training_sequence

    write_chameleon(tmp_path)
    convert(tmp_path / "hf", tmp_path / "ours", tmp_path / "vqgan.ckpt")
    root = shaped_folder(tmp_path / "images")
    settings = replace(options, image_tokenizer="", model=str(tmp_path / "ours"))
    meta = prepare(root, tmp_path / "out", settings)
    assert meta["vocab"]["document_form"] == "chameleon"
    shards, model = Shards(tmp_path / "out"), CM3.from_pretrained(tmp_path / "ours", device="cpu")
    vocab = shards.vocab()
    assert vocab == model.vocab
    shown = model.processor.encode(root / "0.png")
    for number, (form, prompt) in enumerate(
        (
            (Form.LEFT_TO_RIGHT, model.jobs.generate(CAPTIONS[0]).requests[0].prompt),
            (Form.IMAGE_FIRST, model.jobs.caption(root / "0.png").requests[0].prompt),
        )
    ):
        stored = shards.document(number)
        row = training_sequence(*stored, form, 0, vocab, Objective(), model.grid, 0)
        assert row.ids[: len(prompt)].tolist() == prompt  # as it will be asked
        rest = [vocab.name(id) for id in row.ids[len(prompt) :].tolist() if vocab.is_special(id)]
        assert rest == (["</image>", "<eos>"] if form == Form.LEFT_TO_RIGHT else ["<eos>"])
        assert row.weights[len(prompt) :].min() >= 0 and row.weights[len(prompt)] >= 1
    assert shown.grid == (32, 32)


def test_it_is_trained_on_them(options: PrepareOptions, tmp_path: Path):
    from train.language.config import LMConfig
    from train.language.run import train

    write_chameleon(tmp_path)
    convert(tmp_path / "hf", tmp_path / "ours", tmp_path / "vqgan.ckpt")
    settings = replace(options, image_tokenizer="", model=str(tmp_path / "ours"))
    prepare(shaped_folder(tmp_path / "images"), tmp_path / "out", settings)
    config = override(
        LMConfig(),
        {
            "data.folder": str(tmp_path / "out"),
            "start": str(tmp_path / "ours"),
            "steps": 2,
            "data.seq_len": 1100,
            "batch_tokens": 2200,
            "samples.prompts": (),
            "samples.every": 0,
            "eval.every": 0,
        },
    )
    train(config, tmp_path / "run")
    trained = CM3.from_pretrained(tmp_path / "run" / "model", device="cpu")
    assert trained.model.config.document_form == "chameleon" and trained.vocab == Shards(tmp_path / "out").vocab()
