"""nnU-Net as a peer: what it is given, what it leaves behind, and what is said without it."""

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

from benchmarks.speed import nnunet, problem
from tests.fakes import tiny_pack

CPU = torch.device("cpu")
here = pytest.mark.skipif(find_spec(nnunet.MODULE) is None, reason=nnunet.MISSING)
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.interface:FutureWarning"),  # of the timm that nnU-Net asks for
    pytest.mark.filterwarnings("ignore:.*fork.* may lead to deadlocks:DeprecationWarning"),
]


@pytest.mark.parametrize("channels", [1, 3])
def test_nnunet_is_given_what_the_pack_holds(channels: int, tmp_path: Path) -> None:
    pack = tiny_pack(cases=2, slices=3, channels=channels)
    said = nnunet.write(pack, tmp_path / "Dataset001")
    assert json.loads((tmp_path / "Dataset001" / "dataset.json").read_text()) == said
    assert said["channel_names"] == {str(n): name for n, name in enumerate(pack.manifest.channels)}
    assert said["labels"] == {"background": 0, "tumour": 1}
    assert said["numTraining"] == len(said["dataset"]) == 6
    for row, case in enumerate(said["dataset"].values()):
        read = [
            cv2.imread(str(tmp_path / "Dataset001" / file), cv2.IMREAD_UNCHANGED)
            for file in (*case["images"], case["label"])
        ]
        np.testing.assert_array_equal(np.stack(read[:-1], -1), pack.images[row])
        np.testing.assert_array_equal(read[-1], pack.masks[row])
    assert len(list((tmp_path / "Dataset001").rglob("*.png"))) == 6 * (channels + 1)


def test_our_side_counts_what_it_trained_on() -> None:
    _, side = nnunet.ours(tiny_pack(), CPU, batch=4, steps=6)  # more than the 20 slices there are
    assert [side(), side()] == [24, 24]


def test_a_network_is_described_by_its_size_and_its_work() -> None:
    """Of a first layer no gradient of the image is asked for: twice the forward pass."""
    network = nn.Conv2d(3, 200, 3, padding=1, bias=False)
    gigaflop = 2 * 2 * 3 * 9 * 200 * 512 * 512 / 1e9
    said = nnunet.facts(network, (3, 512, 512), 10)
    assert said == f"0.0 M, {gigaflop:.0f} GFLOP an image, {10 * gigaflop:.0f} GFLOP/s"


def test_variables_are_as_before_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_TEST_OLD", "old")
    monkeypatch.delenv("BENCH_TEST_NEW", raising=False)

    def fail() -> None:
        with nnunet.variables({"BENCH_TEST_OLD": "1", "BENCH_TEST_NEW": "2"}):
            raise KeyError(os.environ["BENCH_TEST_OLD"] + os.environ["BENCH_TEST_NEW"])

    with pytest.raises(KeyError, match="12"):
        fail()
    assert os.environ["BENCH_TEST_OLD"] == "old"
    assert "BENCH_TEST_NEW" not in os.environ


def test_without_nnunet_the_figure_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path))
    (figure,) = nnunet.figures(problem(repeats=2, quick=True), module="bench_no_such_library")
    assert figure.note == "not installed: pip install 'medseg-bench[nnunet]'"
    assert figure.theirs == ()
    assert len(figure.ours) == 2
    assert all(rate > 0 for rate in figure.ours)


@here
def test_nnunet_trains_as_asked_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slices have black borders, which it would cut off before it plans."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv(nnunet.WORKERS, "1")
    monkeypatch.setenv("nnUNet_raw", "/mine")
    before, children = dict(os.environ), multiprocessing.active_children()
    pack = tiny_pack(size=64)
    for edge in (slice(0, 20), slice(44, 64)):
        pack.images[:, edge] = 0
    with nnunet.peer(pack, CPU, batch=3, steps=2) as peer:
        weights = [p.detach().clone() for p in peer.trainer.network.parameters()]
        assert [peer.turn(), peer.turn()] == [6, 6]
        assert not all(torch.equal(a, b) for a, b in zip(weights, peer.trainer.network.parameters(), strict=True))
        assert peer.patch == (64, 64)
        assert peer.planned_batch == 2  # the least that it plans; it takes at most 5 % of the pixels at once
        assert len(peer.workers) == 2  # one for training, one for validation
        assert {worker.status() for worker in peer.workers} == {psutil.STATUS_STOPPED}
    after = {name: value for name, value in os.environ.items() if name.startswith(("nnUNet", "PYTHON"))}
    assert after == {name: value for name, value in before.items() if name.startswith(("nnUNet", "PYTHON"))}
    assert multiprocessing.active_children() == children
    assert not any(worker.is_running() for worker in peer.workers)
    assert list(tmp_path.iterdir()) == []
