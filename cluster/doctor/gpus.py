"""What the driver says of each GPU of this machine: memory, ECC, clocks, and what holds the clocks down.

It is asked through NVML, which answers in milliseconds and makes no context on a device, so a GPU that hangs or is full
can be looked at. A machine without a driver has none; one with a driver and without the `nvidia-ml-py` package says so
instead of guessing.
"""

from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

DRIVER = Path("/proc/driver/nvidia/version")
HELD_DOWN = {
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}
"""Bits of nvmlDeviceGetCurrentClocksEventReasons that mean trouble; idle, a power cap and set clocks don't."""


def gpus(nvml: Any = None) -> dict[str, Any]:
    """Facts on this machine's GPUs, whoever may use them.

    Args:
        nvml: the `pynvml` module, or one that answers alike; None: the installed one.

    Returns:
        "devices": one dict a GPU, sizes in bytes, clocks in MHz, what a device doesn't tell as None;
        "driver": its version or None; "problem": why the driver can't be asked, or None.
    """
    if nvml is None:
        try:
            nvml = import_module("pynvml")
        except ImportError:
            problem = "nvidia-ml-py is not installed, and there is a driver to ask" if DRIVER.exists() else None
            return {"devices": [], "driver": None, "problem": problem}
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        absent = "NVMLError_LibraryNotFound"
        problem = None if type(error).__name__ == absent and not DRIVER.exists() else f"NVML: {error}"
        return {"devices": [], "driver": None, "problem": problem}
    try:
        devices = [_device(nvml, index) for index in range(nvml.nvmlDeviceGetCount())]
        return {"devices": devices, "driver": nvml.nvmlSystemGetDriverVersion(), "problem": None}
    except nvml.NVMLError as error:  # one that has fallen off the bus makes even the count fail
        return {"devices": [], "driver": None, "problem": f"NVML: {error}"}
    finally:
        with suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


def _device(nvml: Any, index: int) -> dict[str, Any]:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)

    def ask(name: str, *more: Any) -> Any:
        with suppress(nvml.NVMLError):  # not supported by this device, or by this driver
            return getattr(nvml, name)(handle, *more)
        return None

    memory, ecc = ask("nvmlDeviceGetMemoryInfo"), ask("nvmlDeviceGetEccMode")
    reasons = ask("nvmlDeviceGetCurrentClocksEventReasons") or 0
    errors = ask("nvmlDeviceGetTotalEccErrors", nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC)
    return {
        "index": index,
        "name": ask("nvmlDeviceGetName"),
        "uuid": ask("nvmlDeviceGetUUID"),
        "memory": memory.total if memory else None,
        "used": memory.used if memory else None,
        "ecc": bool(ecc[0]) if ecc else None,
        "ecc_errors": errors,
        "sm_mhz": ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM),
        "sm_most_mhz": ask("nvmlDeviceGetMaxClockInfo", nvml.NVML_CLOCK_SM),
        "celsius": ask("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
        "held_down": [text for bit, text in HELD_DOWN.items() if reasons & bit],
    }
