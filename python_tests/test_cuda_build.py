"""If nvcc is found, the CUDA kernels are built for all default architectures, GPU or not."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import cac_ext

ROOT = Path(__file__).resolve().parent.parent
OPERATORS = [
    "prepare_negatives",
    "masked_logsumexp",
    "masked_contrastive_loss",
    "directional_contrastive_loss",
]
DEFAULT_ARCHITECTURES = {
    13: ["75-real", "80-real", "86-real", "89-real", "90-real", "100-real", "120"],
    12: ["75-real", "80-real", "86-real", "89-real", "90"],
}


def nvcc_major() -> int | None:
    """Major version of the nvcc that the build would find; ``None`` if there is none."""
    nvcc = os.environ.get("CUDACXX") or shutil.which("nvcc")
    for root in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"):
        if nvcc is None and root is not None:
            nvcc = shutil.which("nvcc", path=os.path.join(root, "bin"))
    if nvcc is None:
        return None
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    return int(re.search(r"release (\d+)", text).group(1))


needs_nvcc = pytest.mark.skipif(
    os.environ.get("CAC_CUDA") == "OFF"
    or torch.version.cuda is None
    or nvcc_major() != int(torch.version.cuda.split(".")[0]),
    reason="no nvcc with the CUDA version of this torch, or CAC_CUDA=OFF",
)


@needs_nvcc
def test_cuda_is_built_for_the_default_architectures():
    info = cac_ext.build_info()
    assert info["cuda"], "nvcc was found, but cac_ext was built without CUDA; build it again"
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if asked is None:
        assert info["cuda_architectures"] == DEFAULT_ARCHITECTURES[nvcc_major()]


@needs_nvcc
def test_gpus_without_kernels_are_refused(tmp_path):
    scripts = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": os.pathsep.join([scripts, os.environ["PATH"]])}
    environment["TORCH_CUDA_ARCH_LIST"] = "8.0;7.0+PTX"
    command = ["cmake", "-S", str(ROOT), "-B", str(tmp_path), "-G", "Ninja"]
    command += [f"-DPython_EXECUTABLE={sys.executable}"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode != 0
    assert "compute capability 7.5 (Turing) or newer" in " ".join(result.stderr.split())


@needs_nvcc
@pytest.mark.parametrize("operator", OPERATORS)
def test_the_operators_have_cuda_kernels(operator):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"cac_ext::{operator}", "CUDA")


@pytest.mark.skipif(cac_ext.build_info()["cuda"], reason="this build has CUDA")
def test_without_cuda_the_operators_say_so():
    assert not torch._C._dispatch_has_kernel_for_dispatch_key("cac_ext::prepare_negatives", "CUDA")
