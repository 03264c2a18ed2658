"""Precision: a device computes in bfloat16 only if it has instructions for it, or is asked to emulate them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from bench.config import Input
from bench.data.loader import SliceLoader
from bench.device import autocast, bfloat16_slowdown, has_bfloat16
from bench.inference.predict import Predictor
from tests.fakes import tiny_pack

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def pretend(monkeypatch: pytest.MonkeyPatch, device: torch.device, *, native: bool) -> None:
    """Pretend that the device has instructions for bfloat16, or that it has none."""
    if device == CPU:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": native})
    else:
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native
        )
        monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)


@pytest.mark.parametrize("device", [CPU, GPU], ids=str)
@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("emulated", [True, False])
@pytest.mark.parametrize("precision", ["auto", "float32", "bfloat16"])
def test_bfloat16_is_emulated_only_where_it_is_asked_for(precision, emulated, native, device, monkeypatch):
    pretend(monkeypatch, device, native=native)
    wanted = {"auto": device == GPU and native, "float32": False, "bfloat16": native or emulated}
    assert autocast(device, precision, emulated=emulated)._enabled is wanted[precision]


@pytest.mark.parametrize("name", ["avx512_bf16", "amx_bf16", "bf16", "sve_bf16"])
def test_a_cpu_of_any_kind_with_bfloat16_is_recognised(name, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {name: True})
    assert has_bfloat16(CPU)


@pytest.mark.parametrize("native", [True, False])
def test_a_model_trained_in_bfloat16_predicts_in_what_the_cpu_has(native, monkeypatch):
    pretend(monkeypatch, CPU, native=native)
    seen, model = [], nn.Conv2d(3, 1, 1)
    model.register_forward_hook(lambda module, images, logits: seen.append(logits.dtype))
    Predictor([model], SliceLoader(tiny_pack(), Input(), CPU), 4, "bfloat16").probabilities(np.arange(2))
    assert seen == [torch.bfloat16 if native else torch.float32]


def test_the_slowdown_is_the_ratio_of_the_two_times(monkeypatch):
    now = iter([0.0, 2.0, 10.0, 40.0])  # float32 from 0 to 2 s, bfloat16 from 10 to 40 s
    monkeypatch.setattr("bench.device.time.perf_counter", lambda: next(now))
    assert bfloat16_slowdown(CPU) == 15
