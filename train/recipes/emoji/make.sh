#!/usr/bin/env bash
# The next embedded model, from nothing. Run it from the checkout's root; a command that was interrupted resumes, and data
# and training that are finished stay. Needs npm (the drawings), g++ (torch.compile) and two CPU cores, with bf16 for about 12 h.
set -euo pipefail
python=${PYTHON:-.venv/bin/python}
recipe=train.recipes.emoji

# 9,700 drawings at 256 pixels, 5,349 of them of the 1,011 concepts that the model draws, with names in 24 languages; a
# lexicon of 97 other languages; canvases for the image tokenizer.
[ -f data/emoji/data.json ] || $python -m $recipe.build_dataset --out data/emoji
[ -f data/emoji/lexicon.tsv ] || $python -m $recipe.build_lexicon --data data/emoji
[ -f data/emoji-canvases/data.json ] || $python -m $recipe.build_canvases --data data/emoji --out data/emoji-canvases

# Image tokenizer (1.5 h), then its decoder alone, which keeps the codes.
$python -m train.image_tokenizer --config image_tokenizer_canvas --out runs/image_tokenizer
$python -m train.image_tokenizer --config image_tokenizer_canvas_decoder --out runs/decoder
$python -m $recipe.evaluate ceiling --image-tokenizer runs/decoder/model

# Documents (50 min), and the language model (7 h).
$python -m $recipe.build_documents --image-tokenizer runs/image_tokenizer/model --out data/emoji-documents
"$(dirname "$python")"/torchrun --nproc_per_node 2 -m train.lm --config lm_canvas --data data/emoji-documents \
    --out runs/lm image_tokenizer=runs/decoder/model
for suite in drawings scenes edits plans readings confidence; do
    $python -m $recipe.evaluate $suite --model runs/lm/model
done
$python -m $recipe.package
