"""What a result was made with: code, libraries and machine."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch

from bench import __version__
from bench.device import hardware

LIBRARIES = ("torch", "timm", "segmentation-models-pytorch", "albumentations", "mlflow", "numpy", "scikit-learn")


def environment(device: torch.device) -> dict[str, str]:
    """Return versions, hardware and commit as text."""
    facts = {
        "bench": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cpu_threads": str(torch.get_num_threads()),
        "memory_gb": f"{psutil.virtual_memory().total / 2**30:.0f}",
        "device": hardware(device),
    }
    for library in LIBRARIES:
        try:
            facts[library] = version(library)
        except PackageNotFoundError:
            facts[library] = "not installed"
    if (commit := git_commit()) is not None:
        facts["git_commit"] = commit
    return facts


def environment_tags(device: torch.device) -> dict[str, str]:
    """Return the same as tags of a run, and the commit under the name that MLflow's UI reads."""
    facts = environment(device)
    tags = {f"env.{name}": fact for name, fact in facts.items()}
    if "git_commit" in facts:
        tags["mlflow.source.git.commit"] = facts["git_commit"].removesuffix("-dirty")
    return tags


def git_commit() -> str | None:
    """Return the commit of this code, with '-dirty' if files differ from it; None outside a checkout."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.check_output(command, stderr=subprocess.DEVNULL, text=True).strip()

    try:
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", ".") else "")
    except (OSError, subprocess.CalledProcessError):  # no git on this machine, or no checkout
        return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
