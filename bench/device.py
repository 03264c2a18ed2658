"""Where a run computes, in what precision, and whether it can be repeated bit by bit."""

from __future__ import annotations

import os

import psutil
import torch

from bench.errors import BadSetting


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


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """bfloat16 where it gains: on GPUs. CPUs without AMX are two to three times slower with it."""
    wanted = precision == "bfloat16" or (precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted)


def prepare(device: torch.device, *, deterministic: bool, seed: int) -> None:
    """Seed torch, start counting peak memory, and choose between fast and bitwise repeatable kernels."""
    torch.manual_seed(seed)
    if deterministic:  # without the workspace setting, cuBLAS refuses to be deterministic
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def memory_in_use(device: torch.device) -> int:
    """Bytes: the peak of the GPU since `prepare`, or what the process holds now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return int(psutil.Process().memory_info().rss)
