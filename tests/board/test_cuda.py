"""The driver's calls, against a library compiled with the C signatures of cuda.h, and what is said on failure."""

import ctypes
import shutil
import subprocess

import numpy as np
import pytest
from tensorrt_doubles import Driver

from hqp_lightning.board import cuda
from hqp_lightning.board.cuda import Cuda, driver_missing
from hqp_lightning.errors import ExportError

# Prototypes as in cuda.h (12): CUdeviceptr is 64 bits wide, sizes are size_t, handles are pointers, a device an int.
LIBRARY = """
#include <stdlib.h>
#include <string.h>
typedef unsigned long long P; typedef struct S { float now; } *E; typedef void *H;
static H current, STREAM = (H)0x7fff00002000; static float clock_;
int cuInit(unsigned f) { return f; }
int cuCtxGetCurrent(H *c) { *c = current; return 0; }
int cuCtxSetCurrent(H c) { current = c; return c == (H)0x7fff00001000 ? 0 : 201; }
int cuCtxGetDevice(int *d) { *d = 0; return 0; }
int cuDeviceGet(int *d, int n) { *d = n; return 0; }
int cuDevicePrimaryCtxRetain(H *c, int d) { *c = (H)0x7fff00001000; return d; }
int cuDeviceGetName(char *s, int n, int d) { strncpy(s, "Orin", n); return d; }
int cuDeviceGetAttribute(int *v, int a, int d) { *v = a == 75 ? 8 : a == 76 ? 7 : 16; return d; }
int cuMemGetInfo_v2(size_t *f, size_t *t) { *f = 3000000000u; *t = 8000000000u; return 0; }
int cuMemAlloc_v2(P *p, size_t n) { if (n > 4000000000u) return 2; *p = (P)malloc(n); return 0; }
int cuMemFree_v2(P p) { free((void *)p); return 0; }
int cuMemcpyHtoDAsync_v2(P d, const void *s, size_t n, H t) { memcpy((void *)d, s, n); return t == STREAM ? 0 : 400; }
int cuMemcpyDtoHAsync_v2(void *d, P s, size_t n, H t) { memcpy(d, (void *)s, n); return t == STREAM ? 0 : 400; }
int cuStreamCreate(H *t, unsigned f) { *t = (H)0x7fff00002000; return f == 1 ? 0 : 1; }
int cuStreamSynchronize(H t) { return t == (H)0x7fff00002000 ? 0 : 400; }
int cuStreamDestroy_v2(H t) { return t == (H)0x7fff00002000 ? 0 : 400; }
int cuEventCreate(E *e, unsigned f) { *e = malloc(sizeof **e); return f; }
int cuEventRecord(E e, H t) { e->now = clock_ += 0.25f; return t == (H)0x7fff00002000 ? 0 : 400; }
int cuEventSynchronize(E e) { return 0; }
int cuEventElapsedTime(float *ms, E a, E b) { *ms = b->now - a->now; return 0; }
int cuEventDestroy_v2(E e) { free(e); return 0; }
int cuGetErrorName(int c, const char **s) { *s = c == 400 ? "CUDA_ERROR_INVALID_HANDLE" : "CUDA_ERROR"; return 0; }
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("cuda")
    (folder / "cuda.c").write_text(LIBRARY)
    command = [compiler, "-shared", "-fPIC", "-w", "-o", folder / "libcuda.so", folder / "cuda.c"]
    if subprocess.run(command, check=False).returncode:
        pytest.skip("the C compiler does not make shared libraries here")
    return ctypes.CDLL(str(folder / "libcuda.so"))


def _use(monkeypatch, library):
    monkeypatch.setattr(cuda, "_load", lambda: library)
    return Cuda()


def test_arguments_have_the_widths_of_the_c_interface(compiled, monkeypatch):
    gpu = _use(monkeypatch, compiled)
    assert (gpu.name, gpu.capability, gpu.multiprocessors) == ("Orin", "8.7", 16)
    values = np.arange(5000, dtype=np.float32)
    stream, address = gpu.stream(), gpu.allocate(values.nbytes)
    gpu.to_device(address, values, stream)
    back = np.zeros_like(values)
    gpu.to_host(back, address, stream)
    np.testing.assert_array_equal(back, values)
    start, end = gpu.event(), gpu.event()
    gpu.record(start, stream)
    gpu.record(end, stream)
    assert gpu.elapsed_ms(start, end) == 0.25
    gpu.free(address)
    gpu.release(stream, start, end)
    with pytest.raises(ExportError, match=r"GPU out of memory: 5000 MB asked for, 3000 of 8000 MB are free"):
        gpu.allocate(5_000_000_000)
    with pytest.raises(ExportError, match=r"cuStreamSynchronize failed: CUDA_ERROR_INVALID_HANDLE \(400\)"):
        gpu.synchronize(1)


def test_a_context_that_is_current_is_kept(compiled, monkeypatch):
    _use(monkeypatch, compiled)
    retained = []
    monkeypatch.setattr(compiled, "cuDevicePrimaryCtxRetain", lambda *a: retained.append(a), raising=False)
    Cuda()  # the first one's context is current now
    assert not retained


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (100, "CUDA_VISIBLE_DEVICES"),
        (100, "on a Jetson also that the user is in the group video"),
        (803, "reboot"),
        (804, "LD_LIBRARY_PATH"),
        (34, "stub"),
        (999, "see nvidia-smi"),
    ],
)
def test_a_driver_that_does_not_answer_is_explained(code, advice, monkeypatch):
    monkeypatch.setattr(cuda, "_load", lambda: Driver(init=code))
    reason = driver_missing()
    assert f"cuInit returned {code}" in reason
    assert advice in reason
    assert "\n" not in reason
    with pytest.raises(ExportError, match=f"cuInit returned {code}"):
        Cuda()


def test_no_driver_is_explained(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: (_ for _ in ()).throw(OSError(f"{name}: cannot open")))
    assert driver_missing() == "no NVIDIA driver on this machine (libcuda.so.1: cannot open)"
