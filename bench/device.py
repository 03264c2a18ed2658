"""The device of a run: precision, memory, and bitwise repeatable kernels."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Mapping

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.errors import BadSetting

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -2, -3, -4  # of glibc's mallopt


def find_device(wanted: str) -> torch.device:
    """Return the device of this name; 'auto' is the first GPU, or the CPU without one. Raises `BadSetting`."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise BadSetting(f"'{wanted}' is not a device. Give auto, cpu, cuda or cuda:1.") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BadSetting(f"the device '{wanted}' does not exist. Give --device cpu, or auto.")
    if device.type not in ("cpu", "cuda"):
        raise BadSetting(f"the device '{wanted}' is not supported. Give auto, cpu or cuda.")
    return device


def hardware(device: torch.device) -> str:
    """Return the name of the GPU, or 'cpu'."""
    present = device.type == "cuda" and torch.cuda.is_available()
    return torch.cuda.get_device_name(device) if present else device.type


def has_bfloat16(device: torch.device) -> bool:
    """Return whether the device has instructions for bfloat16. Without them PyTorch emulates it, far slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    present = torch.cpu.get_capabilities()
    return any(present.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))  # x86 and ARM


def bfloat16_slowdown(device: torch.device) -> float:
    """Measure how many times as long as in float32 a 3x3 convolution of 32 channels takes in bfloat16."""
    convolution = torch.nn.Conv2d(32, 32, 3).to(device)
    images = torch.zeros(4, 32, 64, 64, device=device)
    seconds = []
    for enabled in (False, True):
        with torch.autocast(device.type, torch.bfloat16, enabled=enabled):
            convolution(images).sum().backward()
            started = time.perf_counter()
            convolution(images).sum().item()  # waits for the device
            seconds.append(time.perf_counter() - started)
    return seconds[1] / seconds[0]


def autocast(device: torch.device, precision: str, *, emulated: bool = False) -> torch.autocast:
    """Return the autocast context of a precision; 'auto' is bfloat16 on GPUs that have it and float32 elsewhere.

    CPUs with AVX512-BF16 or AMX gain by bfloat16 as well, but on a CPU it must be chosen. A device that has no
    bfloat16 computes in float32 all the same, unless it may be `emulated`. On a GPU casts of weights are not
    cached, as a CUDA graph must not replay an earlier cast.
    """
    wanted = precision == "bfloat16" or (precision == "auto" and device.type == "cuda")
    enabled = wanted and (has_bfloat16(device) or (emulated and precision == "bfloat16"))
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled, cache_enabled=device.type != "cuda")


def configure_torch(device: torch.device, *, deterministic: bool, threads: int | None = None) -> None:
    """Set this process up for training on `device`, with fast or with bitwise repeatable kernels.

    `threads` is the number for CPU kernels; None keeps PyTorch's choice, one per physical core.
    """
    # cuBLAS needs it to be deterministic, and reads it once per process, at the first matrix product.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
    if threads is not None:
        torch.set_num_threads(threads)
    if device.type == "cpu":
        keep_memory()


def keep_memory() -> bool:
    """Keep freed memory in the process instead of returning it to the system; return whether that was possible.

    By default glibc requests every large block from the system and returns it when it is freed, so the kernel
    zeroes each activation of each step page by page: a third of a training step at 256x256
    (benchmarks/results/speed-cpu.md). In exchange the process never shrinks.
    """
    return _mallopt({M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1, M_TOP_PAD: 1 << 26})


def return_memory() -> bool:
    """Undo `keep_memory`, with the limits that glibc's own adjustment would reach."""
    return _mallopt(
        {M_MMAP_MAX: 65536, M_MMAP_THRESHOLD: 32 << 20, M_TRIM_THRESHOLD: 64 << 20, M_TOP_PAD: 128 << 10}
    )


def _mallopt(values: Mapping[int, int]) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library, such as musl
        return False
    return all([mallopt(parameter, value) for parameter, value in values.items()])


def out_of_memory(error: BaseException) -> bool:
    """Return whether Python, PyTorch, or a library below it, ran out of memory."""
    on_cpu = ("can't allocate memory", "could not create a primitive", "could not execute a primitive")
    on_gpu = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        text in str(error) for text in on_cpu + on_gpu
    )


def onto(device: torch.device | str, values: NDArray[np.generic] | Tensor) -> Tensor:
    """Copy values to the device without waiting for it, through pinned memory if it is a GPU."""
    tensor = values if isinstance(values, Tensor) else torch.from_numpy(np.ascontiguousarray(values))
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def memory_in_use(device: torch.device) -> int:
    """Return bytes: the peak of the GPU since the last reset, or the current memory of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return int(psutil.Process().memory_info().rss)
