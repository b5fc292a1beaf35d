#!/usr/bin/env bash
# The next embedded model, from nothing. Run it from the checkout's root; a command that was interrupted resumes, and data
# and training that are finished stay. Needs npm (the drawings), g++ (torch.compile) and two CPU cores, with bf16 for about 8 h.
set -euo pipefail
python=${PYTHON:-.venv/bin/python}
recipe=train.recipes.emoji

# 9,700 drawings at 256 pixels with names in 24 languages, 2,952 of them of the 1,011 concepts and three styles that the
# model draws; a lexicon of 97 other languages; canvases for the decoder (10 min in all).
[ -f data/emoji/data.json ] || $python -m $recipe.build_dataset --out data/emoji
[ -f data/emoji/lexicon.tsv ] || $python -m $recipe.build_lexicon --data data/emoji
[ -f data/emoji-canvases/data.json ] || $python -m $recipe.build_canvases --data data/emoji --out data/emoji-canvases

# Image tokenizer, at 128 pixels (2 h), then a decoder for canvases, which keeps the codes (1 h).
$python -m train.image_tokenizer --config image_tokenizer_emoji --data data/emoji --out runs/image_tokenizer
$python -m train.image_tokenizer --config image_tokenizer_canvas_decoder --out runs/decoder
$python -m $recipe.evaluate ceiling --image-tokenizer runs/decoder/model

# Documents (20 min), and the language model (3.5 h).
$python -m $recipe.build_documents --image-tokenizer runs/decoder/model --out data/emoji-documents
"$(dirname "$python")"/torchrun --nproc_per_node 2 -m train.lm --config lm_canvas --data data/emoji-documents \
    --out runs/lm
for suite in drawings scenes edits plans readings confidence sweep; do
    $python -m $recipe.evaluate $suite --model runs/lm/model
done
$python -m $recipe.package
$python -m $recipe.sheet --out docs/contact_sheet.png
