"""What the driver's libraries say becomes facts, and what they refuse a sentence: real calls into fake ones."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import pytest
from bindings import compile_shared

from serve_app.errors import GpuUnavailable
from serve_app.gpu.driver import Driver, Gpu, read_driver

pytestmark = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="the driver's libraries are compiled for Linux on x86-64",
)

# As cuda.h and nvml.h declare the functions. FAIL is the function that fails, with RESULT.
CUDA = r"""
#define FAILING(name) if (FAIL_ ## name) return RESULT
static void copy(char *to, const char *from) { while ((*to++ = *from++)); }
int cuInit(unsigned flags) { FAILING(init); return flags; }
int cuDriverGetVersion(int *version) { *version = 13010; return 0; }
int cuDeviceGetCount(int *count) { *count = COUNT; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = 40 + ordinal; return 0; }
int cuDeviceGetName(char *name, int size, int device) {
    FAILING(name);
    copy(name, device == 40 && size > 60 ? "NVIDIA H100 80GB HBM3" : "NVIDIA T4");
    return 0;
}
int cuDeviceTotalMem_v2(unsigned long *bytes, int device) {
    *bytes = device == 40 ? 85000000000ul : 16000000000ul;
    return 0;
}
int cuDeviceGetUuid(unsigned char *uuid, int device) {
    for (int i = 0; i < 16; i++) uuid[i] = i + device;
    return 0;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    int first = device == 40;
    *value = attribute == 75 ? (first ? 9 : 7) : attribute == 76 ? (first ? 0 : 5)
           : attribute == 36 ? 2619000 : attribute == 37 ? 5120 : -1;
    return attribute == 37 && !first;  /* one that doesn't tell how wide its memory is */
}
int cuGetErrorString(int error, const char **text) {
    *text = error == 100 ? "no CUDA-capable device is detected" : "system not yet initialized";
    return 0;
}
"""
MANAGEMENT = r"""
static int open;
static int equal(const char *a, const char *b) { while (*a && *a == *b) a++, b++; return *a == *b; }
int nvmlInit_v2(void) { open = 1; return REFUSED; }
int nvmlShutdown(void) { open = 0; return 0; }
int nvmlSystemGetDriverVersion(char *text, unsigned size) {
    const char *version = "580.65.06";
    while ((*text++ = *version++));
    return !open || size != 80;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
    *device = &open;
    return !open || !equal(uuid, "GPU-28292a2b-2c2d-2e2f-3031-323334353637");
}
int nvmlDeviceGetMemoryInfo(void *device, unsigned long long *memory) {
    memory[0] = 85000000000ull, memory[1] = 80000000000ull, memory[2] = 5000000000ull;
    return !open || device != &open;
}
"""


def cuda(folder: Path, *, count: int = 2, failing: str = "", result: int = 0) -> str:
    library = folder / f"libcuda-{count}-{failing}-{result}.so"
    defines = f"#define COUNT {count}\n#define RESULT {result}\n"
    defines += "".join(f"#define FAIL_{name} {int(name == failing)}\n" for name in ("init", "name"))
    compile_shared(library, defines + CUDA)
    return str(library)


def management(folder: Path, *, refused: int = 0) -> str:
    library = folder / f"libnvidia-ml-{refused}.so"
    compile_shared(library, f"#define REFUSED {refused}\n" + MANAGEMENT)
    return str(library)


def test_gpus_and_versions_are_read(tmp_path: Path) -> None:
    driver = read_driver(cuda_library=cuda(tmp_path), management_library=management(tmp_path))
    assert driver == Driver(
        version="580.65.06",
        cuda=(13, 1),
        gpus=(
            # 2 · 2.619 GHz · 640 bytes: NVIDIA says 3.35 TB/s of this one.
            Gpu("NVIDIA H100 80GB HBM3", (9, 0), 85_000_000_000, 80_000_000_000, 3.35232e12),
            Gpu("NVIDIA T4", (7, 5), 16_000_000_000, None, None),
        ),
    )
    assert [gpu.architecture for gpu in driver.gpus] == ["sm_90", "sm_75"]


@pytest.mark.parametrize("missing", [False, True])
def test_what_only_the_management_library_knows_may_be_missing(
    tmp_path: Path, *, missing: bool
) -> None:
    library = "libnvidia-ml-nowhere.so" if missing else management(tmp_path, refused=9)
    driver = read_driver(cuda_library=cuda(tmp_path, count=1), management_library=library)
    assert (driver.version, driver.gpus[0].free_bytes) == (None, None)
    assert driver.gpus[0].name == "NVIDIA H100 80GB HBM3"


def test_a_machine_without_a_driver_is_told_what_to_install() -> None:
    with pytest.raises(GpuUnavailable, match=r"no NVIDIA driver here .*580 or later.*--gpus all"):
        read_driver(cuda_library="libcuda-nowhere.so.1")


def test_no_gpu_names_the_variable_that_hides_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = cuda(tmp_path, failing="init", result=100)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(GpuUnavailable, match=r"no CUDA-capable device.*CUDA_VISIBLE_DEVICES is ''"):
        read_driver(cuda_library=library)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with pytest.raises(GpuUnavailable, match="nvidia-smi"):
        read_driver(cuda_library=library)
    with pytest.raises(GpuUnavailable, match="shows this process no GPU"):
        read_driver(cuda_library=cuda(tmp_path, count=0))


def test_a_driver_that_fails_is_quoted(tmp_path: Path) -> None:
    library = cuda(tmp_path, failing="name", result=3)
    with pytest.raises(
        GpuUnavailable, match=r"cuDeviceGetName says 'system not yet initialized' \(3\)"
    ):
        read_driver(cuda_library=library, management_library=management(tmp_path))


def test_a_driver_that_lacks_a_function_is_too_old(tmp_path: Path) -> None:
    library = tmp_path / "libcuda-old.so"
    compile_shared(library, "int cuDriverOld(void) { return 0; }\n")
    with pytest.raises(GpuUnavailable, match="too old, it has no cuInit"):
        read_driver(cuda_library=str(library))
