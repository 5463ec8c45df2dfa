"""Tensors of mapped files: views, whose pages go back when nobody uses them."""

import gc
import sys
import warnings
from pathlib import Path

import pytest
import torch

from trimode.checkpoints.mapped_file import MappedFile

PAGE = 4096
SIZE = 32 * 2**20


@pytest.fixture
def file(tmp_path):
    data = torch.arange(SIZE // 4, dtype=torch.int32)
    (tmp_path / "data").write_bytes(data.numpy().tobytes())
    return MappedFile(tmp_path / "data")


def mapped_bytes():
    """Memory that this process holds of files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssFile")) * 1024


def test_a_tensor_is_a_view_without_a_warning(file):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one, two = file.tensor(PAGE, 64).view(torch.int32), file.tensor(PAGE, 64)
    assert one.tolist() == list(range(PAGE // 4, PAGE // 4 + 16))
    assert one.data_ptr() == two.data_ptr()


def test_a_tensor_at_an_odd_place_can_be_of_any_type(file):
    tensor = file.tensor(2, 8)
    assert tensor.data_ptr() % 8 == 0
    assert bytes(tensor) == bytes([0, 0, 1, 0, 0, 0, 2, 0])
    assert tensor.view(torch.float64).shape == (1,)


def test_writing_to_a_tensor_leaves_the_file_alone(file, tmp_path):
    tensor = file.tensor(0, 2 * PAGE)
    before = (tmp_path / "data").read_bytes()
    tensor.fill_(7)
    assert (tmp_path / "data").read_bytes() == before
    assert tensor.unique().tolist() == [7]


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_pages_go_back_with_the_last_tensor_that_uses_them(file):
    before = mapped_bytes()
    tensor = file.tensor(0, SIZE)
    rows = tensor.view(torch.int32).view(64, -1)[3:]
    rows.sum()
    del tensor
    gc.collect()
    assert mapped_bytes() - before > SIZE * 0.9
    del rows
    assert mapped_bytes() - before < SIZE * 0.1


def test_what_was_written_stays_while_a_tensor_uses_it(file):
    """Pages are not given back under a tensor that shares them."""
    whole, part = file.tensor(0, 8 * PAGE), file.tensor(2 * PAGE, PAGE)
    again = file.tensor(0, 8 * PAGE)
    whole.fill_(7)
    del part
    del again
    assert whole.unique().tolist() == [7]
    neighbour = file.tensor(8 * PAGE, 100)
    del neighbour
    assert whole.unique().tolist() == [7]


def test_a_neighbour_in_the_same_page_keeps_what_was_written(file):
    left, right = file.tensor(0, PAGE + 64), file.tensor(PAGE + 64, 3 * PAGE)
    left.fill_(7)
    right.sum()
    del right
    assert left.unique().tolist() == [7]
