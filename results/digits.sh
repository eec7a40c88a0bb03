#!/bin/sh
# The nine runs behind the table of the digits: three splits, three seeds. About a quarter of an hour on two cores.
# sh results/digits.sh, from the repository's root, with jepa_lit installed.
set -e
for split in 0 1 2; do for seed in 0 1 2; do
    jepa_lit_train --seed $seed --split_seed $split --threads 1 --quiet --overwrite --out results/digits/split$split-seed$seed
done; done
