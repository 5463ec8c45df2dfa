"""Loading holds the packed weights and a few tensors at a time, never the whole file."""

import subprocess
import sys

import pytest
import torch

from tests.reference.tiny import letters
from trimode.checkpoints import save_checkpoint
from trimode.config import ModelConfig
from trimode.model import expected_tensors

from .files import write_gguf

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

CONFIG = ModelConfig(
    family="llama", vocab_size=8192, hidden_size=1024, intermediate_size=4096, num_layers=8,
    num_heads=16, num_kv_heads=16, head_dim=64, rms_norm_eps=1e-5, max_position_embeddings=64,
    tie_word_embeddings=True,
)  # fmt: skip
GROWTH = """
import os, sys, torch
from trimode.checkpoints import open_checkpoint

def peak():
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith("VmHWM")).split()[1]) * 1024
(torch.ones(64, 64) @ torch.ones(64, 64)).round()  # threads and kernels are PyTorch's, not ours
checkpoint = open_checkpoint(sys.argv[1])
before = peak()
model = checkpoint.build(dtype="int8")
print(peak() - before)
"""


def growth(path):
    """Most bytes that loading held at a time."""
    run = [sys.executable, "-c", GROWTH, str(path)]
    return int(subprocess.run(run, capture_output=True, text=True, check=True).stdout)


def tensors(dtype):
    row = torch.randn(2**16)
    for name, shape in expected_tensors(CONFIG).items():
        count = torch.Size(shape).numel()
        yield name, row.repeat(-(-count // len(row)))[:count].view(shape).to(dtype)


PARAMETERS = sum(torch.Size(shape).numel() for shape in expected_tensors(CONFIG).values())
AT_ONCE = 16 * CONFIG.hidden_size * CONFIG.intermediate_size
"""Bytes: two matrices that are packed together, in their file, in int8 and in tiles."""


def test_a_directory_in_bf16_takes_the_packed_weights_and_little_more(tmp_path):
    path = tmp_path / "m"
    save_checkpoint(path, CONFIG, tensors(torch.bfloat16), tokenizer=letters())
    assert (path / "model.safetensors").stat().st_size > 2 * PARAMETERS > 270e6
    assert growth(path) < PARAMETERS + AT_ONCE


def test_a_gguf_file_takes_the_packed_weights_and_little_more(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", CONFIG, dict(tensors(torch.float32)), kind="F16")
    assert path.stat().st_size > 2 * PARAMETERS
    assert growth(path) < PARAMETERS + AT_ONCE
