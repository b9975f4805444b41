"""Run by `test_forks.py` in a process of its own: forks while threads of the parent hold every lock there is.

    python forked.py ARTIFACT

Prints what each child found, and nothing else.
"""

import multiprocessing
import os
import signal
import sys
import threading
from concurrent.futures import CancelledError

import torch
import transformers
from torch.utils.data import DataLoader, Dataset

import quept
from quept.models.checkpoint import quiet
from quept.precision import residency
from quept.precision.parts import elastic_linears

# A child of a process whose PyTorch has threads and has computed hangs in PyTorch itself: see docs/troubleshooting.md.
torch.set_num_threads(1)

SECONDS = 20  # until a child counts as hanging
INPUTS = torch.arange(48).view(2, 24)


@torch.inference_mode()
def logits(model):
    return model(INPUTS).logits


def all_that_a_child_does():
    """Say what does not work in a child; empty where all does."""
    wrong = []
    if quept.prefetch(model, 3).result(SECONDS) != len(linears):
        wrong.append("prefetch")
    with quept.at_precision(model, 3):
        if not torch.equal(logits(model), expected):
            wrong.append("a pass")
    quept.set_precision(model, 4)
    if cache.resident != sum(cache.bytes_by_bits().values()):
        wrong.append("the cache's count")
    with quiet():
        pass
    if transformers.utils.logging.get_verbosity() != verbosity:
        wrong.append("verbosity")
    if torch.nn.Linear(2, 2).weight.is_meta or torch.get_default_dtype() != torch.float32:
        wrong.append("new modules")
    if not torch.equal(logits(quept.load(sys.argv[1], 3)), expected):
        wrong.append("load")
    return ", ".join(wrong)


def in_child(what):
    """Return what a forked child says of `what()`."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(SECONDS)
        try:
            said = what()
        except BaseException as error:
            said = repr(error)
        os.write(writing, (said or "fine").encode())
        os._exit(0)
    os.close(writing)
    said = b"".join(iter(lambda: os.read(reading, 4096), b"")).decode()
    os.close(reading)
    _, status = os.waitpid(child, 0)
    return said if not status else f"ended with {status}"


class Answers(Dataset):
    """A data set whose item is found by the model."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return torch.tensor(not all_that_a_child_does())


def pending():
    """Say what becomes of a prefetch that the parent had not finished, and whether the child may ask again."""
    try:
        return f"{waiting.result(SECONDS)}"
    except CancelledError:
        return "cancelled" if not all_that_a_child_does() else "cancelled, but the child cannot prefetch"


model = quept.load(sys.argv[1])
linears = list(elastic_linears(model).values())
cache = linears[0].weight_cache
verbosity = transformers.utils.logging.get_verbosity()
with quept.at_precision(model, 3):
    expected = logits(model)
print("before any prefetch:", in_child(all_that_a_child_does))
quept.prefetch(model, 5).result()
print("after a prefetch:", in_child(all_that_a_child_does))

held, over = threading.Event(), threading.Event()
residency._ahead.submit(lambda: (held.set(), over.wait()))
held.wait()
waiting = quept.prefetch(model, 7)
print("with one pending:", in_child(pending))
over.set()
assert waiting.result(SECONDS) == len(linears), "the parent goes on"

with multiprocessing.get_context("fork").Pool(1) as pool:
    print("in a pool:", pool.apply_async(all_that_a_child_does).get(SECONDS) or "fine")
found = list(DataLoader(Answers(), num_workers=1, multiprocessing_context="fork", timeout=SECONDS))
print("in a data loader:", "fine" if all(map(bool, found)) else "not")

stop = threading.Event()


def busy(action):
    while not stop.wait(0.001):
        action()


actions = (
    lambda: quept.prefetch(model, 6).result(),
    lambda: [layer.forget_derived() for layer in linears],
    lambda: quept.set_precision(model, 5),
    lambda: quept.load(sys.argv[1], verify=False),
)
threads = [threading.Thread(target=busy, args=(action,)) for action in actions]
for thread in threads:
    thread.start()
print("beside busy threads:", " ".join(sorted({in_child(all_that_a_child_does) for _ in range(4)})))
stop.set()
for thread in threads:
    thread.join()
