"""`make bench`: every benchmark, one after the other, each in a process of its own."""

import subprocess
import sys

BENCHMARKS = (
    "startup", "reader", "packing", "streaming", "clean", "step", "exact", "overhead", "save", "symmetric_run", "scale",
    "plan", "loaders", "resume", "build", "generation", "muon",
)  # fmt: skip

if __name__ == "__main__":
    chosen = sys.argv[1:] or BENCHMARKS
    for name in chosen:
        print(f"== {name}", flush=True)
        subprocess.run([sys.executable, "-m", f"tests.bench.{name}"], check=True)
