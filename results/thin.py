"Keep every tenth line of a log, and those with a look at the embeddings: python results/thin.py RUN/log.jsonl ..."

import json, sys
from pathlib import Path

for path in map(Path, sys.argv[1:]):
    kept = [
        l for l in path.read_text().splitlines() if json.loads(l)['step'] % 10 == 0 or 'effective_rank' in l
    ]
    path.write_text('\n'.join(kept) + '\n')
