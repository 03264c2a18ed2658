"""A data set larger than the memory allowed still trains: nothing but the batches at hand is ever held."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

linux = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="RLIMIT_DATA limits private memory on Linux only"
)

# The system refuses this process more private memory than it holds plus half of what the pack's pixels take.
PROGRAM = """
import resource, sys
from pathlib import Path

import numpy as np, pandas as pd, psutil, torch

from bench import registry
from bench.config import Input, RunConfig, Train
from bench.data.loader import SliceLoader
from bench.data.pack import Manifest, Pack
from bench.training.step import Stepper
from bench.training.loop import Recipe
from bench.inference.predict import Predictor

folder, slices, side = Path(sys.argv[1]), 512, 512
torch.set_num_threads(1)
create = lambda name, *shape: np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.uint8, shape)
images, masks = create("images", slices, side, side, 3), create("masks", slices, side, side)
images[::64, 100:200, 100:200], masks[::64, 100:200, 100:200] = 200, 1  # the rest is a hole in the file
histograms = np.zeros((slices, 3, 256), np.uint32)
histograms[..., 0], histograms[..., 200] = side * side - 10000, 10000
index = pd.DataFrame({"case": [f"P{row // 64}" for row in range(slices)], "slice": range(slices),
                      "institution": "X", "positive": np.arange(slices) % 64 == 0})
manifest = Manifest("k", "memory", True, ("a", "b", "c"), "", (), "", {})
del images, masks
images, masks = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("images", "masks"))
pack = Pack(folder, manifest, images, masks, histograms, index)
model = registry.model["unet"].bind({"base": 2, "depth": 1})(3)
augment = [registry.augmentation["warp"].bind({})]
loader = SliceLoader(pack, Input(image_size=64), torch.device("cpu"))

def epoch(rows):
    chosen = {"loss": registry.loss["bce_dice"].bind({}), "schedule": registry.schedule["constant"].bind({})}
    config = RunConfig(train=Train(epochs=1, batch_size=8))
    (done,) = Recipe(config=config, **chosen, augment=augment).train(model, loader, rows, seed=0)
    return done

epoch(np.arange(16))  # what the libraries themselves want is taken before
held = int(next(l for l in open("/proc/self/status") if l.startswith("VmData")).split()[1]) * 1024
limit = held + images.nbytes // 2
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
try:
    np.array(images)
except MemoryError:
    print("does not fit")
print("images", epoch(np.arange(slices)).images)
counted = Predictor([model], loader, 8).case_counts(pack.cases[:2], 0.5)
print("truth", sum(int(t.tp.sum() + t.fn.sum()) for [t] in counted))
"""


# A step of 16 slices of 128x128 through this network takes about a gigabyte; 400 megabytes are left for it.
OUTGROWN = """
import resource, torch

from bench import registry
from bench.config import Train
from bench.training.step import Stepper

torch.set_num_threads(1)
torch.manual_seed(0)
model = registry.model["unet"].bind({"base": 16})(3)
step = Stepper(model, registry.loss["bce_dice"].bind({}), Train(), 1e-3, torch.device("cpu"), say=print)
images, masks = torch.randn(16, 3, 128, 128), torch.zeros(16, 1, 128, 128)
step(images[:1], masks[:1], 1e-3)
held = int(next(l for l in open("/proc/self/status") if l.startswith("VmData")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (held + 400 * 2**20,) * 2)
print("loss", bool(step(images, masks, 1e-3).isfinite()))
"""


@linux
def test_a_batch_that_outgrows_the_memory_of_a_cpu_is_trained_in_parts() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", OUTGROWN], capture_output=True, text=True, check=False, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    *said, loss = ran.stdout.splitlines()
    assert loss == "loss True"
    assert said
    assert all("out of memory: each batch of 16 is now split into" in line for line in said)


@linux
def test_a_data_set_larger_than_the_memory_allowed_trains_and_is_scored(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, check=False, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == ["does not fit", "images 512", "truth 20000"]
