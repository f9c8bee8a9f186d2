"""Environments for the libraries that benchmarks compare with; none of them is a dependency of Luban.

Each is a virtual environment under `LUBAN_BENCH` (default `~/.cache/luban-bench`), made once. That of the loaders sees
this environment's packages (torch, numpy, webdataset) through a .pth file, and its own go in with pip's `--no-deps`:
mosaicml-streaming would otherwise replace torch and pin numpy below 2.2. What it imports of torchvision and doesn't use
for tokens is a stub.
"""

import hashlib
import subprocess
import sys
import venv
from pathlib import Path

import torch

from tests.bench.loader_corpus import home

LOADERS = (
    "litdata==0.2.76", "mosaicml-streaming==0.13.0", "torchdata==0.11.0", "lightning-utilities", "tifffile", "boto3",
    "botocore", "jmespath", "s3transfer", "obstore", "python-snappy", "cramjam", "Brotli", "zstd", "catalogue",
    "python-dateutil", "six", "pillow",
)  # fmt: skip
PREPARATION = ("datatrove==0.10.1", "spacy", "tokenizers", "orjson", "nltk", "regex", "xxhash<3.7")
_STUBS = {
    "torchvision/__init__.py": "",
    "torchvision/datasets.py": "VisionDataset = object\n",
    "torchvision/transforms/__init__.py": "",
    "torchvision/transforms/functional.py": "to_tensor = None\n",
}


def python_with(packages: tuple[str, ...], alone: bool = False) -> str:
    """The interpreter of an environment that has this one's packages, and these; made where there is none yet.

    `alone`: it has these and what they ask for, and nothing of this one's.
    """
    here = Path(torch.__file__).parents[1]
    key = hashlib.sha256(repr((packages, str(here), sys.version)).encode()).hexdigest()[:12]
    place = home() / key
    python = place / "bin" / "python"
    if (place / "complete").exists():
        return str(python)
    print(f"making {place} for {packages[0]} and others", flush=True)
    venv.create(place, with_pip=True, clear=True)
    only = [] if alone else ["--no-deps"]
    subprocess.run([python, "-m", "pip", "install", "--quiet", *only, *packages], check=True)
    if not alone:
        _share(python, here)
    (place / "complete").touch()
    return str(python)


def _share(python: Path, here: Path) -> None:
    """Let the environment see this one's packages, and the stubs."""
    asked = subprocess.run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], check=True,
                           capture_output=True, text=True)  # fmt: skip
    libraries = Path(asked.stdout.strip())
    for name, content in _STUBS.items():
        (libraries / name).parent.mkdir(parents=True, exist_ok=True)
        (libraries / name).write_text(content)
    (libraries / "luban.pth").write_text(f"{here}\n")
