#!/bin/sh
# How lambda was chosen: on a fifth of the training part (--validate), never on the test part. Some seven minutes on two cores.
# sh results/digits-search.sh, from the repository's root, with jepa_lit installed.
set -e
for lamb in 0.005 0.02 0.05 0.2; do
    jepa_lit_train --validate --lamb $lamb --threads 1 --quiet --overwrite --out results/digits-search/lamb$lamb
done
