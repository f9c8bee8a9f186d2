"""Every command of the README does what it says, on a folder of other text than the demo's."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.corpora import texts

README = Path(__file__).parents[1] / "README.md"


def commands() -> list[str]:
    """The lines of the README's bash blocks."""
    blocks = re.findall(r"^```bash\n(.*?)^```", README.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_readme_s_commands_work_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for number, text in enumerate(texts(400_000)):
        (folder / f"{number:04d}.txt").write_text(text, "utf-8")
    with (tmp_path / "pairs.jsonl").open("w") as file:
        for number in range(300):
            pair = {"question": f"What comes after {number}?", "answer": f"After {number} comes {number + 1}."}
            file.write(json.dumps(pair) + "\n")
    lines = commands()
    assert len(lines) >= 16
    for line in lines:
        assert line.startswith("luban ")
        done = subprocess.run(
            line, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=400,
            env={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, f"{line}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        assert (done.stdout + done.stderr).strip()
    assert (
        "everything holds"
        in subprocess.run(
            [sys.executable, "-P", "-m", "luban", "verify", "first"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )
    assert (tmp_path / "runs" / "first" / "report.html").stat().st_size > 20_000
