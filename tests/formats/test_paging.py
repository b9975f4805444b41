"""Memory that is given back holds the same afterwards."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from quept.formats.paging import HUGE_PAGE, empty_bytes, page_out


def resident_file_pages():
    """Bytes of mapped files that are in memory."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssFile:"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc, and pages are given back on Linux alone")
def test_pages_of_a_file_go_and_come_back(tmp_path):
    values = torch.randint(-127, 128, (64, 2**20), dtype=torch.int8)
    save_file({"values": values}, tmp_path / "values.safetensors")
    with safe_open(tmp_path / "values.safetensors", framework="pt") as file:
        mapped = file.get_tensor("values")
    assert torch.equal(mapped, values)
    before = resident_file_pages()
    page_out([mapped])
    assert before - resident_file_pages() > 0.9 * values.nbytes
    assert torch.equal(mapped, values)


def test_what_was_written_stays_and_small_tensors_are_left_alone(tmp_path):
    save_file({"values": torch.zeros(2**22)}, tmp_path / "values.safetensors")
    with safe_open(tmp_path / "values.safetensors", framework="pt") as file:
        mapped = file.get_tensor("values")
    mapped[1000:3000] = 5
    own, small = torch.arange(2**20), torch.ones(3)
    page_out([mapped, own, small])
    assert mapped.sum() == 10000
    assert torch.equal(own, torch.arange(2**20))
    assert small.sum() == 3


@pytest.mark.parametrize(("rows", "width"), [(0, 5), (3, 7), (1, HUGE_PAGE), (5, HUGE_PAGE // 2 + 1)])
def test_room_for_bytes_is_theirs_alone(rows, width):
    first, second = empty_bytes(rows, width), empty_bytes(rows, width)
    first.fill_(1)
    second.fill_(2)
    assert first.shape == (rows, width)
    assert first.is_contiguous()
    assert (first == 1).all()
    assert (second == 2).all()
    assert first.clone().untyped_storage().nbytes() == rows * width, "a copy takes no more than it needs"
