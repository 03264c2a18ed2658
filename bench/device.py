"""Where a run computes, in what precision and with how much memory, and whether it can be repeated bit by bit."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.errors import BadSetting

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -2, -3, -4  # of glibc's mallopt


def find_device(wanted: str) -> torch.device:
    """The device of this name; 'auto' is the first GPU, else the CPU. Raises `BadSetting`."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise BadSetting(f"'{wanted}' is no device. Give auto, cpu, cuda or cuda:1.") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BadSetting(f"the device '{wanted}' is not there. Give --device cpu, or auto.")
    if device.type not in ("cpu", "cuda"):
        raise BadSetting(f"the device '{wanted}' is not supported. Give auto, cpu or cuda.")
    return device


def hardware(device: torch.device) -> str:
    """The name of the GPU, or 'cpu'."""
    return (
        torch.cuda.get_device_name(device) if device.type == "cuda" and torch.cuda.is_available() else device.type
    )


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """bfloat16 where it gains: on GPUs. CPUs with AVX512-BF16 or AMX gain by it too, others are two to three times
    slower: there it must be asked for.

    Weights are cast anew in every pass: a CUDA graph must not replay a cast that happened before it was captured.
    """
    wanted = precision == "bfloat16" or (precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted, cache_enabled=device.type != "cuda")


def configure_torch(device: torch.device, *, deterministic: bool, threads: int | None = None) -> None:
    """Choose between fast and bitwise repeatable kernels, and set this process up for training on `device`.

    `threads` are those of the CPU's kernels; None leaves PyTorch's choice, one a physical core.
    """
    # Without it cuBLAS refuses to be deterministic; it is read once a process, at the first matrix product.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
    if threads is not None:
        torch.set_num_threads(threads)
    if device.type == "cpu":
        keep_memory()


def keep_memory() -> bool:
    """Let freed memory stay with the process instead of going back to the system. Gives whether that was possible.

    By default glibc asks the system for every large block and returns it when it is freed, so that each
    activation of each step is zeroed by the kernel page by page: a third of a training step at 256x256 in a
    process of its own (benchmarks/results/speed-cpu.md). The price is that the process stays as large as it
    once was.
    """
    return _mallopt({M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1, M_TOP_PAD: 1 << 26})


def return_memory() -> bool:
    """Undo `keep_memory`: the limits at which glibc's own adjustment of them would end."""
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


def out_of_memory(error: RuntimeError) -> bool:
    """Whether this is what PyTorch, or a library under it, says when a device has no more memory to give."""
    on_cpu = ("can't allocate memory", "could not create a primitive", "could not execute a primitive")
    on_gpu = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in on_cpu + on_gpu)


def onto(device: torch.device | str, values: NDArray[np.generic] | Tensor) -> Tensor:
    """Values on the device without waiting for it: through pinned memory where it is a GPU."""
    tensor = values if isinstance(values, Tensor) else torch.from_numpy(np.ascontiguousarray(values))
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def memory_in_use(device: torch.device) -> int:
    """Bytes: the peak of the GPU since it was last reset, or what the process holds now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return int(psutil.Process().memory_info().rss)
