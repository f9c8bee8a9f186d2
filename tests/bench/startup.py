"""Start-up of the command line: `luban --help` and `luban status` as whole processes, against a bare Python."""

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.bench.rounds import median, turns
from trainer.recipe import Recipe


def main() -> None:
    """Print milliseconds and, for each command, how much of it Python itself is."""
    from data import settings

    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "runs" / "some"
        run.mkdir(parents=True)
        (run / "recipe.yaml").write_text(settings.dump(Recipe()))

        def command(*words: str) -> object:
            return lambda: subprocess.run([sys.executable, *words], cwd=folder, check=True, capture_output=True)

        contenders = {
            "python -c pass": command("-c", "pass"),
            "luban --help": command("-P", "-m", "luban", "--help"),
            "luban pretrain --help": command("-P", "-m", "luban", "pretrain", "--help"),
            "luban status RUN": command("-P", "-m", "luban", "status", "some"),
            "import torch": command("-c", "import torch"),
        }
        seconds = turns(contenders, 7)  # type: ignore[arg-type]
    for name, each in seconds.items():
        share = median(each) / median(seconds["import torch"])
        print(f"{name:24} {1000 * median(each):7.0f} ms   least {1000 * min(each):5.0f}   {share:5.2f} of import torch")


if __name__ == "__main__":
    main()
