"""Streams whose blocks change the shape of what they are given."""

import torch

from quept.calibration.stream import StreamStore

CPU = torch.device("cpu")


def filled(store, samples=5, tokens=4, hidden=6):
    stream = store.empty(samples, tokens, hidden, torch.float32)
    states = torch.randn(samples, tokens, hidden, generator=torch.Generator().manual_seed(0))
    stream.write(slice(None), states)
    return stream, states


def test_a_stream_is_rewritten_in_place_where_the_shape_stays(tmp_path):
    store = StreamStore(10**6, tmp_path, CPU)
    stream, states = filled(store)
    before = stream._states
    replaced = store.replace(stream, 2, lambda rows: stream.read(rows) * 2)
    assert replaced._states is before
    assert torch.equal(replaced.read(slice(None)), states * 2)


def test_a_stream_takes_the_shape_that_comes_and_its_memory_is_counted_once(tmp_path):
    for budget, where in ((10**6, "in_memory"), (0, "in_files")):
        store = StreamStore(budget, tmp_path, CPU)
        stream, states = filled(store)
        held = store.replace(stream, 2, lambda rows, stream=stream: stream.read(rows)[:, :2].repeat(1, 1, 2))
        assert held.shape == (2, 12)
        assert torch.equal(held.read(slice(None)), states[:, :2].repeat(1, 1, 2))
        assert getattr(store, where) == 5 * 2 * 12 * 4
        assert store.in_memory + store.in_files == 5 * 2 * 12 * 4
    assert list(tmp_path.iterdir()) == []
