"""What accelerators are known to have: name, memory and rated power, from their data sheets.

Peaks are the meters' (`trainer.meters.DENSE_BF16_TERAFLOPS`), found by the same name as the driver gives. What isn't
in a data sheet is None, and no figure is made of it.
"""

from dataclasses import dataclass
from pathlib import Path

from data.errors import UserError
from trainer.meters import peak_flops


@dataclass(frozen=True)
class Device:
    """One rank's device."""

    name: str
    """As the driver gives it; "cpu"."""
    memory_gb: float | None = None
    """10^9 bytes."""
    watts: float | None = None
    """Rated power of the board."""

    @property
    def gpu(self) -> bool:
        """Whether it is one."""
        return self.name != "cpu"

    def peak(self, precision: str) -> float | None:
        """Dense FLOP/s at "bf16" or "fp32"; None where it isn't known."""
        return peak_flops(self.name, precision)


CPU = Device("cpu")
KNOWN = {
    "b200": Device("NVIDIA B200", 180, 1000),
    "h200": Device("NVIDIA H200", 141, 700),
    "h200-nvl": Device("NVIDIA H200 NVL", 141, 600),
    "h100": Device("NVIDIA H100 80GB HBM3", 80, 700),
    "h100-nvl": Device("NVIDIA H100 NVL", 94, 400),
    "h100-pcie": Device("NVIDIA H100 PCIe", 80, 350),
    "gh200": Device("NVIDIA GH200 96GB", 96, None),
    "a100": Device("NVIDIA A100-SXM4-80GB", 80, 400),
    "a100-40": Device("NVIDIA A100-SXM4-40GB", 40, 400),
    "a100-pcie": Device("NVIDIA A100 80GB PCIe", 80, 300),
    "l40s": Device("NVIDIA L40S", 48, 350),
    "l4": Device("NVIDIA L4", 24, 72),
    "a10": Device("NVIDIA A10", 24, 150),
    "cpu": CPU,
}


def device(name: str | None, gpus: bool, drivers: Path = Path("/proc/driver/nvidia/gpus")) -> Device:
    """The device called `name`; without one, the machine's first GPU, or one of which nothing is known, or the CPU.

    Args:
        name: one of KNOWN, or as the driver gives it.
        gpus: the ranks are to have one each.

    Raises:
        UserError: no such device is known.
    """
    if name is not None:
        known = {each.name: each for each in KNOWN.values()}
        found = KNOWN.get(name.lower()) or known.get(name)
        if found is None:
            raise UserError(f"--device {name} is not known; known are {', '.join(KNOWN)}: or give --memory-gb alone")
        return found
    for folder in sorted(drivers.glob("*")) if drivers.is_dir() else []:
        lines = (folder / "information").read_text("utf-8", "replace").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("Model:")), "a GPU")
        return next((each for each in KNOWN.values() if each.name == model), Device(model))
    return Device("a GPU") if gpus else CPU
