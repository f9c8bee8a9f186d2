"""datatrove's equivalent of a build, one process: quality rules, MinHash duplicates, tokens. Runs where datatrove is.

`python build_by_datatrove.py DOCUMENTS.jsonl TOKENIZER.json FOLDER` prints processor seconds of each stage as JSON.
Each stage reads all documents, whatever the one before would have dropped.
"""

import json
import sys
import time
from pathlib import Path


def main() -> None:
    """Run the stages one after another."""
    from datatrove.executor import LocalPipelineExecutor  # pyright: ignore[reportMissingImports]
    from datatrove.pipeline.dedup import (  # pyright: ignore[reportMissingImports]
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.dedup.minhash import MinhashConfig  # pyright: ignore[reportMissingImports]
    from datatrove.pipeline.filters import (  # pyright: ignore[reportMissingImports]
        C4QualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )
    from datatrove.pipeline.readers import JsonlReader  # pyright: ignore[reportMissingImports]
    from datatrove.pipeline.tokens import DocumentTokenizer  # pyright: ignore[reportMissingImports]
    from datatrove.pipeline.writers import JsonlWriter  # pyright: ignore[reportMissingImports]

    documents, tokenizer, folder = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    config = MinhashConfig(n_grams=5, num_buckets=16, hashes_per_bucket=8)
    read = [JsonlReader(str(documents.parent), glob_pattern=documents.name)]
    signatures, buckets, remove = (f"{folder}/{name}" for name in ("signatures", "buckets", "remove"))
    rules = [GopherRepetitionFilter(), GopherQualityFilter(), C4QualityFilter(filter_no_terminal_punct=False)]
    steps = {
        "clean": [([*read, *rules, JsonlWriter(f"{folder}/clean", compression=None)], 1)],
        "near copies": [
            ([*read, MinhashDedupSignature(signatures, config)], 1),
            ([MinhashDedupBuckets(signatures, buckets, config=config)], config.num_buckets),
            ([MinhashDedupCluster(buckets, remove, config=config)], 1),
            ([*read, MinhashDedupFilter(remove), JsonlWriter(f"{folder}/kept", compression=None)], 1),
        ],
        "tokenize": [([*read, DocumentTokenizer(f"{folder}/tokens", tokenizer, eos_token="<|eos|>", seed=0)], 1)],
    }
    seconds = {}
    for name, pipelines in steps.items():
        began = time.process_time()
        for pipeline, tasks in pipelines:
            logs = f"{folder}/logs"
            LocalPipelineExecutor(pipeline, tasks=tasks, workers=1, skip_completed=False, logging_dir=logs).run()
        seconds[name] = time.process_time() - began
    counts = {name: sum(1 for path in Path(folder, name).glob("*") for _ in path.open()) for name in ("clean", "kept")}
    print(json.dumps({"seconds": seconds, "documents": counts}))


if __name__ == "__main__":
    main()
