"""Bit groups that run side by side end where bit groups in turn do, and never stand in one another's way."""

import threading
import time

import pytest
import torch

import quept
from quept.calibration import workers as crews
from quept.calibration.capture import ModelHead
from quept.calibration.workers import WorkerPool

CPU = torch.device("cpu")


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def contents(directory) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir()) if path.suffix == ".safetensors"}


def short(name: str, **reconstruction) -> quept.Recipe:
    recipe = quept.load_recipe(name)
    quick = recipe.reconstruction.updated(epochs=3, batch_size=4, **reconstruction)
    changes = {"granularity": recipe.granularity.updated(group_size=16), "reconstruction": quick}
    return recipe.updated(**changes, **({"adapter": recipe.adapter.updated(rank=2)} if recipe.adapter.rank else {}))


@pytest.mark.parametrize("name", ["best", "paper", "weight-activation-best"])
def test_side_by_side_and_in_turn_give_the_same_bytes(name, tiny_model, windows, tmp_path, two_threads, monkeypatch):
    """`best` couples bit-widths by mixing, `paper` by the cascade's shared slice and by merged streams."""
    recipe, most = short(name), 0
    start = WorkerPool.start

    def counted(self, task, item):
        nonlocal most
        most = max(most, self.at_once if self._pool is not None else 0)
        return start(self, task, item)

    monkeypatch.setattr(WorkerPool, "start", counted)
    model = tiny_model("llama", num_hidden_layers=3)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        quept.calibrate(model, tmp_path / str(threads), data=windows, recipe=recipe, compiled=False)
        assert most == (0 if threads == 1 else sum(map(bool, recipe.trained_groups)))
        assert torch.get_num_threads() == threads
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_an_image_classifier_s_groups_run_side_by_side(tiny_classifier, images, tmp_path, two_threads):
    recipe = short("vision-best", last_block_loss="kl")
    for threads in (1, 2):
        torch.set_num_threads(threads)
        quept.calibrate(tiny_classifier("swin"), tmp_path / str(threads), data=images, recipe=recipe, compiled=False)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_tasks_overlap_and_results_come_in_order(two_threads):
    met = threading.Barrier(3, timeout=30)

    def task(item: int) -> tuple[int, int]:
        met.wait()  # each waits for the others: in turn, none would end
        return item, torch.get_num_threads()

    for values, alone in ((1, 1), (1 << 20, 2)):  # short operations are never split
        with WorkerPool.of(CPU, 3, task_bytes=1, values=values) as workers, workers.undivided():
            assert torch.get_num_threads() == alone
    with WorkerPool.of(CPU, 3, task_bytes=1, values=1 << 20) as workers:
        assert workers.map(task, [3, 1, 2]) == [(3, 1), (1, 1), (2, 1)]
        with workers.undivided():
            assert workers.map(lambda item: threading.current_thread().name, [1]) == [threading.current_thread().name]
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


def test_the_first_failure_is_raised_when_all_have_ended(two_threads):
    ended = []

    def task(item: int) -> None:
        if item < 2:
            raise ValueError(item)
        time.sleep(0.2)
        ended.append(item)

    with WorkerPool.of(CPU, 3, task_bytes=1, values=1) as workers, pytest.raises(ValueError, match="0"):
        workers.map(task, [2, 0, 1])
    assert ended == [2]


@pytest.mark.parametrize(
    ("threads", "tasks", "task_bytes", "values", "at_once", "each"),
    [
        (1, 5, 1, 1, 1, None),  # nothing to share out
        (2, 5, 1, 1, 5, 1),  # more groups than processors
        (16, 5, 1, 1 << 20, 5, 3),
        (16, 5, 1, 1, 5, 1),  # operations too short to be split
        (8, 1, 1, 1 << 20, 1, 8),
        (8, 5, 3 << 30, 1 << 20, 2, 4),  # a quarter of 32 GiB holds two
        (8, 5, 9 << 30, 1 << 20, 1, 8),  # and none of these, of which one runs all the same
    ],
)
def test_how_many_run_at_once(threads, tasks, task_bytes, values, at_once, each, monkeypatch):
    monkeypatch.setattr(crews, "_memory", lambda: 32 << 30)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    workers = WorkerPool.of(CPU, tasks, task_bytes, values)
    assert (workers.at_once, workers.each) == (at_once, each)
    assert WorkerPool.of(torch.device("cuda"), tasks, task_bytes, values).at_once == 1


def test_memory_is_the_container_s_where_it_has_less(monkeypatch, tmp_path):
    whole = crews._memory()
    assert whole > 1 << 28
    limits = [tmp_path / name for name in ("missing", "none", "less")]
    limits[1].write_text("max\n")
    limits[2].write_text("123456\n")
    monkeypatch.setattr(crews, "LIMITS", limits)
    assert crews._memory() == 123456


def test_threads_may_predict_at_the_same_time(tiny_model, windows):
    model = tiny_model("llama")
    from quept.models import architecture_of

    head = ModelHead(model, architecture_of("llama"), torch.float32, CPU, windows[:1])
    states = [torch.randn(2, windows.shape[1], 32, generator=torch.Generator().manual_seed(n)) for n in range(8)]
    with torch.no_grad():
        expected = [head(each) for each in states]

    def task(each: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return head(each)

    with WorkerPool(4, 1) as workers:
        for _ in range(5):
            for given, wanted in zip(workers.map(task, states), expected, strict=True):
                assert torch.equal(given, wanted)
