"""nnU-Net as a peer: the dataset it gets, what it leaves behind, and the message when it is not installed."""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest
import torch
from torch import nn

from benchmarks.speed import nnunet
from benchmarks.speed.problem import make_problem
from tests.fakes import tiny_pack

CPU = torch.device("cpu")
needs_nnunet = pytest.mark.skipif(find_spec(nnunet.MODULE) is None, reason=nnunet.MISSING)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*torch.jit.interface:FutureWarning"),  # from nnU-Net's version of timm
    pytest.mark.filterwarnings("ignore:.*fork.* may lead to deadlocks:DeprecationWarning"),
]


@pytest.mark.parametrize("channels", [1, 3])
def test_nnunet_gets_the_pixels_of_the_pack(channels: int, tmp_path: Path) -> None:
    pack = tiny_pack(cases=2, slices=3, channels=channels)
    dataset = nnunet.write_dataset(pack, tmp_path / "Dataset001")
    assert json.loads((tmp_path / "Dataset001" / "dataset.json").read_text()) == dataset
    assert dataset["channel_names"] == {str(n): name for n, name in enumerate(pack.manifest.channels)}
    assert dataset["labels"] == {"background": 0, "tumour": 1}
    assert dataset["numTraining"] == len(dataset["dataset"]) == 6
    for row, case in enumerate(dataset["dataset"].values()):
        images = [
            cv2.imread(str(tmp_path / "Dataset001" / file), cv2.IMREAD_UNCHANGED)
            for file in (*case["images"], case["label"])
        ]
        np.testing.assert_array_equal(np.stack(images[:-1], -1), pack.images[row])
        np.testing.assert_array_equal(images[-1], pack.masks[row])
    assert len(list((tmp_path / "Dataset001").rglob("*.png"))) == 6 * (channels + 1)


def test_our_side_counts_the_images_it_trained_on() -> None:
    _, side = nnunet.build_our_training(tiny_pack(), CPU, batch=4, steps=6)  # more than the pack's 20 slices
    assert [side(), side()] == [24, 24]


def test_a_network_is_described_by_its_size_and_its_work() -> None:
    """A first layer needs no gradient of the image, so training is twice the forward pass."""
    network = nn.Conv2d(3, 200, 3, padding=1, bias=False)
    gigaflop = 2 * 2 * 3 * 9 * 200 * 512 * 512 / 1e9
    description = nnunet.describe_work(network, (3, 512, 512), 10)
    assert description == f"0.0 M, {gigaflop:.0f} GFLOP an image, {10 * gigaflop:.0f} GFLOP/s"


def test_environment_variables_are_restored_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_TEST_OLD", "old")
    monkeypatch.delenv("BENCH_TEST_NEW", raising=False)

    def fail() -> None:
        with nnunet.environment_variables({"BENCH_TEST_OLD": "1", "BENCH_TEST_NEW": "2"}):
            raise KeyError(os.environ["BENCH_TEST_OLD"] + os.environ["BENCH_TEST_NEW"])

    with pytest.raises(KeyError, match="12"):
        fail()
    assert os.environ["BENCH_TEST_OLD"] == "old"
    assert "BENCH_TEST_NEW" not in os.environ


def test_without_nnunet_the_figure_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path))
    (figure,) = nnunet.measure(make_problem(repeats=2, quick=True), module="bench_no_such_library")
    assert figure.note == "not installed: pip install 'medseg-bench[nnunet]'"
    assert figure.theirs == ()
    assert len(figure.ours) == 2
    assert all(rate > 0 for rate in figure.ours)


@needs_nnunet
def test_nnunet_trains_as_configured_and_cleans_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slices have black borders, which nnU-Net would crop before planning."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv(nnunet.WORKERS, "1")
    monkeypatch.setenv("nnUNet_raw", "/mine")
    before, children = dict(os.environ), multiprocessing.active_children()
    pack = tiny_pack(size=64)
    for edge in (slice(0, 20), slice(44, 64)):
        pack.images[:, edge] = 0
    with nnunet.start_nnunet(pack, CPU, batch=3, steps=2) as peer:
        weights = [p.detach().clone() for p in peer.trainer.network.parameters()]
        assert [peer.turn(), peer.turn()] == [6, 6]
        assert not all(torch.equal(a, b) for a, b in zip(weights, peer.trainer.network.parameters(), strict=True))
        assert peer.patch == (64, 64)
        assert peer.planned_batch == 2  # its minimum; it plans for at most 5 % of the pixels
        assert len(peer.workers) == 2  # one for training, one for validation
        assert {worker.status() for worker in peer.workers} == {psutil.STATUS_STOPPED}
    after = {name: value for name, value in os.environ.items() if name.startswith(("nnUNet", "PYTHON"))}
    assert after == {name: value for name, value in before.items() if name.startswith(("nnUNet", "PYTHON"))}
    assert multiprocessing.active_children() == children
    assert not any(worker.is_running() for worker in peer.workers)
    assert list(tmp_path.iterdir()) == []
