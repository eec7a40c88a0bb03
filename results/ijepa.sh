#!/bin/sh
# The three runs of I-JEPA on the digits: three seeds, the first split. About ten minutes each on one core, with the probes.
# sh results/ijepa.sh, from the repository's root, with jepa_lit installed.
set -e
for seed in 0 1 2; do
    jepa_lit_train --method ijepa --seed $seed --threads 1 --quiet --overwrite --out results/ijepa/seed$seed
    python results/thin.py results/ijepa/seed$seed/log.jsonl
done
