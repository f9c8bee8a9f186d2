"""Facts of GPUs, from a stand-in for NVML: this is read where there is no driver."""

from types import SimpleNamespace
from typing import Any

from cluster.doctor.gpus import gpus


class Nvml:
    """Two GPUs; the second is old, hot and broken, and doesn't tell everything."""

    NVML_MEMORY_ERROR_TYPE_UNCORRECTED, NVML_VOLATILE_ECC, NVML_CLOCK_SM, NVML_TEMPERATURE_GPU = 1, 0, 1, 0

    class NVMLError(Exception):
        pass

    class NVMLError_LibraryNotFound(NVMLError):
        pass

    def __init__(self, init: Exception | None = None, count: Exception | None = None):
        self.init, self.count, self.closed = init, count, 0

    def nvmlInit(self) -> None:
        if self.init:
            raise self.init

    def nvmlShutdown(self) -> None:
        self.closed += 1

    def nvmlDeviceGetCount(self) -> int:
        if self.count:
            raise self.count
        return 2

    def nvmlSystemGetDriverVersion(self) -> str:
        return "570.1"

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetName(self, handle: int) -> str:
        return "NVIDIA H100"

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return f"GPU-{handle}"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        return SimpleNamespace(total=80 << 30, used=(0, 40 << 30)[handle])

    def nvmlDeviceGetEccMode(self, handle: int) -> list[int]:
        return [1, 1]

    def nvmlDeviceGetTotalEccErrors(self, handle: int, kind: int, since: int) -> int:
        return (0, 3)[handle]

    def nvmlDeviceGetClockInfo(self, handle: int, kind: int) -> int:
        return (1980, 345)[handle]

    def nvmlDeviceGetMaxClockInfo(self, handle: int, kind: int) -> int:
        return 1980

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:
        if handle:
            raise self.NVMLError("Not Supported")
        return 41

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: int) -> int:
        return (0x1 | 0x4, 0x8 | 0x40)[handle]


def test_each_gpu_tells_its_memory_ecc_clocks_and_what_holds_them_down() -> None:
    nvml = Nvml()
    found = gpus(nvml)
    assert (found["driver"], found["problem"], nvml.closed) == ("570.1", None, 1)
    good, bad = found["devices"]
    assert good == {
        "index": 0, "name": "NVIDIA H100", "uuid": "GPU-0", "memory": 80 << 30, "used": 0, "ecc": True,
        "ecc_errors": 0, "sm_mhz": 1980, "sm_most_mhz": 1980, "celsius": 41, "held_down": [],
    }  # fmt: skip
    assert (bad["ecc_errors"], bad["celsius"]) == (3, None)
    assert bad["held_down"] == ["hardware slowdown", "hardware thermal slowdown"]


def test_no_driver_is_no_gpu_and_no_problem() -> None:
    assert gpus(Nvml(init=Nvml.NVMLError_LibraryNotFound())) == {"devices": [], "driver": None, "problem": None}


def test_a_driver_that_fails_is_a_problem_and_never_an_exception() -> None:
    assert gpus(Nvml(init=Nvml.NVMLError("Driver/library version mismatch")))["problem"] == (
        "NVML: Driver/library version mismatch"
    )
    nvml = Nvml(count=Nvml.NVMLError("GPU is lost"))
    assert (gpus(nvml)["problem"], nvml.closed) == ("NVML: GPU is lost", 1)
