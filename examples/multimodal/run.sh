#!/usr/bin/env bash
# A small multimodal model from photos, step by step, on two CPU cores. Each step that is done is
# done once; start it again and it goes on where it was.
#
#   examples/multimodal/run.sh DATA OUT        DATA holds the photo packs, OUT gets all else
#   examples/multimodal/run.sh DATA OUT --set stages.0.steps=100      changes the recipe
set -euo pipefail
DATA=$1 OUT=$2 HERE=$(dirname "$0")
shift 2
mkdir -p "$OUT"

# 1. A text tokenizer and the config of a language model, whose weights are random at first.
[ -f "$OUT/language/config.json" ] || python "$HERE/language.py" "$OUT/language" \
  --texts "$DATA/flickr8k-train.parquet" \
  --classes "$DATA"/{tiny-imagenet,imagenette,caltech101}-train.parquet

# 2. Photos to tokens: squares of 64 px, 8 x 8 ids.
for name in {tiny-imagenet,imagenette,caltech101,flickr8k}-{train,val}; do
  [ -f "$OUT/tokens/$name/manifest.json" ] ||
    semhitok tokenize "$DATA/$name.parquet" --size 64 --out "$OUT/tokens/$name"
done

# 3. Tokens to sequences: what there is to say of a picture, and pictures to draw.
prepare() { # NAME TASKS... -- DATA...
  local name=$1 tasks=() data=()
  shift
  while [ "$1" != -- ]; do tasks+=(--task "$1") && shift; done
  shift
  data=("$@")
  [ -f "$OUT/sequences/$name/manifest.json" ] ||
    semhitok lm prepare "${data[@]}" "${tasks[@]}" --language "$OUT/language" \
      --size 64 --max-side 16 --max-length 256 --out "$OUT/sequences/$name"
}
T=$OUT/tokens
LABELLED=("$T/tiny-imagenet-train" "$T/imagenette-train" "$T/caltech101-train")
prepare names name -- "${LABELLED[@]}"
prepare questions is-there -- "${LABELLED[@]}"
prepare classes draw-class -- "${LABELLED[@]}"
prepare captions describe -- "$T/flickr8k-train"
prepare drawings draw -- "$T/flickr8k-train"

# 4. One set of weights for all of it.
S=$OUT/sequences
semhitok lm train small --set language.source="$OUT/language" \
  --data names="$S/names" --data questions="$S/questions" --data classes="$S/classes" \
  --data captions="$S/captions" --data drawings="$S/drawings" --out "$OUT/run" "$@"
