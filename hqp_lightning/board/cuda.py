"""GPU memory, streams and events by the CUDA driver API through ctypes: neither torch nor pycuda is on a board."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import numpy as np

from hqp_lightning.errors import ExportError

__all__ = ["Cuda", "driver_missing"]

_OUT_OF_MEMORY = 2
_CAPABILITY_MAJOR, _CAPABILITY_MINOR, _MULTIPROCESSORS = 75, 76, 16  # of CUdevice_attribute
_ADVICE = {  # CUresult of cuInit -> what it means here
    34: "the driver library is the toolkit's stub: run it where the NVIDIA driver is installed",
    100: "no GPU is visible: check nvidia-smi, CUDA_VISIBLE_DEVICES, and the container's --gpus or --runtime nvidia; "
    "on a Jetson also that the user is in the group video",
    803: "the driver's library and its kernel module are of different versions: reboot, or install the driver again",
    804: "the CUDA compatibility library is not for this GPU: take it out of LD_LIBRARY_PATH",
}


def _load() -> Any:
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


def driver_missing() -> str | None:
    """Return why no GPU can be used here, in one line, or None. Asks the driver alone, so nothing can crash."""
    try:
        code = _load().cuInit(0)
    except OSError as error:
        return f"no NVIDIA driver on this machine ({error})"
    if code:
        return f"no usable NVIDIA GPU on this machine (cuInit returned {code}): {_ADVICE.get(code, 'see nvidia-smi')}"
    return None


class Cuda:
    """The GPU whose context is current in this thread (torch's, where torch has one), else device 0's primary context.

    TensorRT and torch live in primary contexts too, so addresses and streams can be handed to either.

    Raises:
        ExportError: no driver, no GPU; every method: a CUDA call failed.
    """

    def __init__(self) -> None:
        if (reason := driver_missing()) is not None:
            raise ExportError(reason)
        self._lib = _load()
        self._context, device = ctypes.c_void_p(), ctypes.c_int()
        self._call("cuCtxGetCurrent", ctypes.byref(self._context))
        if self._context:
            self._call("cuCtxGetDevice", ctypes.byref(device))
        else:
            self._call("cuDeviceGet", ctypes.byref(device), 0)
            self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)
            self.activate()
        name = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", name, len(name), device)
        self.name = name.value.decode(errors="replace")
        major, minor, self.multiprocessors = (
            self._number("cuDeviceGetAttribute", attribute, device)
            for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR, _MULTIPROCESSORS)
        )
        self.capability = f"{major}.{minor}"

    def activate(self) -> None:
        """Make the context current in the calling thread."""
        self._call("cuCtxSetCurrent", self._context)

    def allocate(self, nbytes: int) -> int:
        """Return the address of ``nbytes`` bytes of GPU memory."""
        address = ctypes.c_uint64()
        code = self._lib.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(nbytes))
        if code == _OUT_OF_MEMORY:
            free, total = ctypes.c_size_t(), ctypes.c_size_t()
            self._call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
            raise ExportError(
                f"GPU out of memory: {nbytes / 1e6:.0f} MB asked for, {free.value / 1e6:.0f} of "
                f"{total.value / 1e6:.0f} MB are free. Stop other programs that use the GPU, or take a smaller batch"
            )
        self._check("cuMemAlloc", code)
        return address.value

    def free(self, address: int) -> None:
        """Give back what `allocate` returned."""
        self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def stream(self) -> int:
        """Return the handle of a new stream (on the default one TensorRT synchronizes more than it must)."""
        handle = ctypes.c_void_p()
        self._call("cuStreamCreate", ctypes.byref(handle), 1)  # 1: not blocking for the default stream
        return handle.value or 0

    def synchronize(self, stream: int) -> None:
        """Wait for all work of the stream; an error of earlier work shows here."""
        self._call("cuStreamSynchronize", ctypes.c_void_p(stream))

    def to_device(self, address: int, values: np.ndarray, stream: int) -> None:
        """Copy a contiguous array to the GPU."""
        source = ctypes.c_void_p(values.ctypes.data)
        self._call("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(address), source, _size(values), ctypes.c_void_p(stream))

    def to_host(self, values: np.ndarray, address: int, stream: int) -> None:
        """Copy from the GPU into a contiguous array, and wait until it is there."""
        target = ctypes.c_void_p(values.ctypes.data)
        self._call("cuMemcpyDtoHAsync_v2", target, ctypes.c_uint64(address), _size(values), ctypes.c_void_p(stream))
        self.synchronize(stream)

    def event(self) -> int:
        """Return the handle of a new event with a time."""
        handle = ctypes.c_void_p()
        self._call("cuEventCreate", ctypes.byref(handle), 0)
        return handle.value or 0

    def record(self, event: int, stream: int) -> None:
        """Let the event happen when the stream gets there."""
        self._call("cuEventRecord", ctypes.c_void_p(event), ctypes.c_void_p(stream))

    def elapsed_ms(self, start: int, end: int) -> float:
        """Wait for ``end`` and return the GPU time between both events, milliseconds (resolution 0.5 us)."""
        elapsed = ctypes.c_float()
        self._call("cuEventSynchronize", ctypes.c_void_p(end))
        self._call("cuEventElapsedTime", ctypes.byref(elapsed), ctypes.c_void_p(start), ctypes.c_void_p(end))
        return elapsed.value

    def release(self, stream: int, *events: int) -> None:
        """Destroy a stream and events."""
        for event in events:
            self._call("cuEventDestroy_v2", ctypes.c_void_p(event))
        self._call("cuStreamDestroy_v2", ctypes.c_void_p(stream))

    def _number(self, function: str, *arguments: Any) -> int:
        value = ctypes.c_int()
        self._call(function, ctypes.byref(value), *arguments)
        return value.value

    def _call(self, function: str, *arguments: Any) -> None:
        self._check(function, getattr(self._lib, function)(*arguments))

    def _check(self, function: str, code: int) -> None:
        if code:
            text = ctypes.c_char_p()
            self._lib.cuGetErrorName(code, ctypes.byref(text))
            raise ExportError(f"{function.split('_')[0]} failed: {(text.value or b'unknown error').decode()} ({code})")


def _size(values: np.ndarray) -> ctypes.c_size_t:
    return ctypes.c_size_t(values.nbytes)
