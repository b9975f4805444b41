"""One loaded model under load from many threads: every result must be, bit for bit, that of a thread alone.

    python scripts/thread_load.py                                 every recipe, 8 threads of 200 calls each per budget
    python scripts/thread_load.py --recipes best --calls 1000     one of them, for longer

Threads call one tiny model at precisions of their own, at its default, by plans in part, rounded to nearest, with
gradients, without its head, through copies of it, and let it generate. Beside them the default is switched, weights
are prefetched and forgotten, and the artifact is loaded, described and saved. Budgets for derived weights go from
nothing, where each pass derives all of them, to no limit. Ends with 1 where a result is another one, or an error.
"""

import argparse
import copy
import random
import sys
import tempfile
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageClassification

import quept
from quept import recipes
from quept.generation import KeyValueCache, cache_arguments
from quept.precision import at_precision, elastic_linears, keep_weights, precision_of, rounded_to_nearest

LANGUAGE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 12,
    "patch_size": 4,
    "num_labels": 5,
}
DEFAULTS = (5, 8)  # that the switcher goes back and forth between
PLAN = {"*.0.*": 4}  # of the first block alone
BUDGETS = {"none": 0, "one weight": 1000, "no limit": None}
OFTEN, SOMETIMES, RARELY = 12, 3, 1

Action = Callable[[random.Random], bool]  # tells whether its result is right


@dataclass(frozen=True)
class Subject:
    """A calibrated model of language or of vision: its artifact, and two inputs."""

    artifact: Path
    inputs: Tensor
    vision: bool

    @classmethod
    def calibrated(cls, recipe_name: str, folder: Path) -> "Subject":
        """Round a tiny random model by a recipe, without training."""
        recipe, vision = quept.load_recipe(recipe_name).with_bits(range(2, 9)), "vision" in recipe_name
        recipe = recipe.updated(
            reconstruction=recipe.reconstruction.updated(epochs=0),
            granularity=recipe.granularity.updated(group_size=16),
            adapter={"kind": "none"},
        )
        auto, family, sizes = (
            (AutoModelForImageClassification, "vit", VISION) if vision else (AutoModelForCausalLM, "llama", LANGUAGE)
        )
        generator = torch.Generator().manual_seed(0)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = auto.from_config(AutoConfig.for_model(family, **sizes)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
        data = (
            torch.randn(8, 3, 12, 12, generator=generator)
            if vision
            else torch.randint(96, (8, 24), generator=generator)
        )
        quept.calibrate(model, folder / recipe_name, data=data, recipe=recipe)
        return cls(folder / recipe_name, data[:2], vision)

    @cached_property
    def precisions(self) -> tuple[Any, ...]:
        """Precisions for threads of their own."""
        mixed = {"*": 3, "*.1.*": 6}
        return (2, 3, 4, 5, 6, 7, 8, None, mixed) if self.vision else (2, 3, 5, 8, None, mixed, "4kv4", "2kv3")

    @torch.inference_mode()
    def logits(self, model: Any) -> Tensor:
        """Return the logits of the inputs."""
        found: Tensor = model(self.inputs).logits
        return found

    @torch.inference_mode()
    def features(self, model: Any) -> Tensor:
        """Return what reaches the head, from the model without it."""
        found: Tensor = model.base_model(self.inputs).last_hidden_state
        return found

    def gradient(self, model: Any) -> Tensor:
        """Return the logits' gradient for the inputs, embedded where they are tokens."""
        if self.vision:
            given = self.inputs.clone().requires_grad_()
            return torch.autograd.grad(model(given).logits.square().sum(), given)[0]
        given = model.get_input_embeddings()(self.inputs).detach().requires_grad_()
        return torch.autograd.grad(model(inputs_embeds=given).logits.square().sum(), given)[0]

    @torch.inference_mode()
    def generated(self, model: Any) -> Tensor:
        """Return tokens that follow the inputs, by a cache of quantized keys and values."""
        given = self.inputs[:1, :8]
        cache = cache_arguments(KeyValueCache(model))
        settings = {"attention_mask": torch.ones_like(given), "do_sample": False, "pad_token_id": 0}
        found: Tensor = model.generate(given, max_new_tokens=6, **settings, **cache)
        return found


class Trial:
    """A model with the results of a thread alone, and the jobs that are done with it."""

    def __init__(self, subject: Subject, budget: int | None) -> None:
        self.subject = subject
        self.model = quept.load(subject.artifact)
        self.alone = {repr(each): self.at(each, subject.logits) for each in subject.precisions}
        self.rounded = {bits: self.rounded_at(bits) for bits in (2, 8)}
        self.gradients = {bits: self.at(bits, subject.gradient) for bits in DEFAULTS}
        self.generations = {} if subject.vision else {"5kv4": self.at("5kv4", subject.generated)}
        by_default: list[list[Any]] = []
        for bits in DEFAULTS:
            quept.set_precision(self.model, bits)
            with at_precision(self.model, PLAN):
                in_part = subject.logits(self.model)
            plan = precision_of(self.model)
            by_default.append([subject.logits(self.model), subject.features(self.model), in_part, plan])
        self.defaults, self.features, self.in_part, self.plans = map(tuple, zip(*by_default, strict=True))
        differing = {each.sum().item() for each in (*self.alone.values(), *self.rounded.values())}
        assert len(differing) > len(self.alone) / 2, "precisions that give the same results would hide a mixture"
        keep_weights(self.model, budget)

    def at(self, precision: Any, run: Callable[[Any], Tensor]) -> Tensor:
        """Return a result at a precision."""
        with at_precision(self.model, precision):
            return run(self.model)

    def rounded_at(self, bits: int) -> Tensor:
        """Return the baseline's logits."""
        with rounded_to_nearest(self.model, bits):
            return self.subject.logits(self.model)

    def jobs(self) -> dict[str, tuple[int, Action]]:
        """Return by name how often a job is done, and what does it: it tells whether the result is right."""
        subject, model = self.subject, self.model

        def scoped(chance: random.Random) -> bool:
            precision = chance.choice(subject.precisions)
            return torch.equal(self.at(precision, subject.logits), self.alone[repr(precision)])

        def copied(chance: random.Random) -> bool:
            precision, twin = chance.choice(subject.precisions), copy.deepcopy(model)
            with at_precision(twin, precision):
                return torch.equal(subject.logits(twin), self.alone[repr(precision)])

        def rounded(chance: random.Random) -> bool:
            bits = chance.choice(tuple(self.rounded))
            return torch.equal(self.rounded_at(bits), self.rounded[bits])

        def differentiated(chance: random.Random) -> bool:
            bits = chance.choice(DEFAULTS)
            return torch.equal(self.at(bits, subject.gradient), self.gradients[bits])

        def generated(chance: random.Random) -> bool:
            precision = chance.choice(tuple(self.generations))
            return torch.equal(self.at(precision, subject.generated), self.generations[precision])

        jobs = {
            "at a precision": (OFTEN, scoped),
            "at the default": (OFTEN, lambda _: is_one_of(subject.logits(model), self.defaults)),
            "without the head": (SOMETIMES, lambda _: is_one_of(subject.features(model), self.features)),
            "by a plan in part": (SOMETIMES, lambda _: is_one_of(self.at(PLAN, subject.logits), self.in_part)),
            "precision_of": (SOMETIMES, lambda _: precision_of(model) in self.plans),
            "rounded to nearest": (SOMETIMES, rounded),
            "with gradients": (SOMETIMES, differentiated),
            "in a copy": (RARELY, copied),
        }
        return jobs if subject.vision else {**jobs, "generated": (RARELY, generated)}

    def beside(self, folder: Path) -> dict[str, Action]:
        """Return what goes on beside the jobs, over and over."""
        subject, model = self.subject, self.model
        linears = list(elastic_linears(model).values())

        def switch(chance: random.Random) -> bool:
            quept.set_precision(model, chance.choice(DEFAULTS))
            return True

        def prefetch(chance: random.Random) -> bool:
            return quept.prefetch(model, chance.choice(subject.precisions)).result(60) >= 0

        def evict(chance: random.Random) -> bool:
            held = linears[0].weight_cache
            held.forget(chance.choice(linears).path)
            return held.budget is None or held.resident <= held.budget

        def load(chance: random.Random) -> bool:
            precision = chance.choice(subject.precisions)
            loaded = quept.load(subject.artifact, precision)
            return torch.equal(subject.logits(loaded), self.alone[repr(precision)])

        def save(chance: random.Random) -> bool:
            with tempfile.TemporaryDirectory(dir=folder) as target:
                quept.save(model, Path(target) / "saved")
                saved = quept.info(Path(target) / "saved")
                return torch.equal(subject.logits(quept.load(saved.directory, 3)), self.alone["3"])

        return {"switch": switch, "prefetch": prefetch, "evict": evict, "load": load, "save and info": save}


def is_one_of(found: Tensor, allowed: tuple[Tensor, ...]) -> bool:
    """Return whether a result is one of those that are allowed, bit for bit."""
    return any(torch.equal(found, each) for each in allowed)


@contextmanager
def repeated(actions: dict[str, Action], counts: dict[str, "Count"]) -> Iterator[None]:
    """Repeat each of the actions in a thread of its own meanwhile."""
    stop = threading.Event()

    def repeat(name: str, action: Action) -> None:
        chance = random.Random(name)
        while not stop.wait(0.001):
            counts[name].attempt(name, action, chance)

    threads = [threading.Thread(target=repeat, args=item) for item in actions.items()]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


class Count:
    """Counts of one thread: what was done, and what was wrong, by description."""

    def __init__(self) -> None:
        self.done: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()

    def attempt(self, name: str, action: Action, chance: random.Random) -> None:
        """Do something once, and count it."""
        self.done[name] += 1
        try:
            if not action(chance):
                self.wrong[f"{name}: another result"] += 1
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(where.filename).name}:{where.lineno}"
            self.wrong[f"{name}: {type(error).__name__} {str(error)[:150]} ({place})"] += 1

    def __add__(self, other: "Count") -> "Count":
        added = Count()
        added.done, added.wrong = self.done + other.done, self.wrong + other.wrong
        return added


def run(subject: Subject, budget: int | None, threads: int, calls: int) -> Count:
    """Return what was done and what was wrong."""
    trial = Trial(subject, budget)
    jobs, beside = trial.jobs(), trial.beside(subject.artifact.parent)
    counts, counts_beside = [Count() for _ in range(threads)], {name: Count() for name in beside}
    together = threading.Barrier(threads)

    def work(number: int) -> None:
        chance = random.Random(number)
        together.wait()
        for name in chance.choices(list(jobs), [often for often, _ in jobs.values()], k=calls):
            counts[number].attempt(name, jobs[name][1], chance)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # threads take turns as often as they can
    try:
        with ThreadPoolExecutor(threads) as pool, repeated(beside, counts_beside):
            list(pool.map(work, range(threads)))
    finally:
        sys.setswitchinterval(interval)
    return sum([*counts, *counts_beside.values()], Count())


def main() -> int:
    """Try recipes and budgets; 1 where anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=recipes.names(), help="some of the shipped recipes")
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--calls", type=int, default=200, help="of each thread, for each budget")
    options = parser.parse_args()
    torch.set_num_threads(1)
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        for name in options.recipes:
            subject = Subject.calibrated(name, Path(folder))
            for label, budget in BUDGETS.items():
                count = run(subject, budget, options.threads, options.calls)
                failed |= bool(count.wrong)
                done = ", ".join(f"{times} {what}" for what, times in count.done.items())
                print(f"{name}, budget {label}: {sum(count.wrong.values())} wrong of {done}", flush=True)
                for what, times in count.wrong.most_common():
                    print(f"    {times} x {what}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
