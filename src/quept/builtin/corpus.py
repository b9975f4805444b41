"""Short stories from a seeded probabilistic grammar: the text of the built-in model.

Each story simulates a small world (who owns how many of what, where every treasure lies, what is written on a
list, which way the road runs) and tells what happens in it; the closing questions are answered from the state
of that world. Predicting the text therefore takes names, pronouns, sums and places carried over a hundred
tokens and more, so that a small Transformer has something to learn and rounding its weights has a price.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple, TypeVar

from quept.builtin.vocabulary import (
    DAYTIMES,
    GOODS,
    LANDMARKS,
    MATERIALS,
    MEN,
    MOODS,
    NUMBERS,
    PLACES,
    PRAISE,
    PROVISIONS,
    SEASONS,
    TRADES,
    TREASURES,
    WEATHERS,
    WOMEN,
    enumerated,
    plural,
    sentence,
    with_article,
)

Choice = TypeVar("Choice")


class Split(NamedTuple):
    """Seed and length of one part of the corpus: `generate` makes its text from these alone."""

    seed: int
    characters: int


# Part of the data format: the shipped texts are checked against these, and the model has seen only the first.
TRAINING = Split(seed=1, characters=16_000_000)
CALIBRATION = Split(seed=2, characters=400_000)
TEST = Split(seed=3, characters=100_000)


def generate(seed: int, characters: int) -> str:
    """Write stories, one per line, until the next one would exceed `characters`.

    The text is a function of `seed` alone: asking for more characters only appends stories.
    """
    random = Random(seed)
    lines: list[str] = []
    remaining = characters
    while True:
        line = Story(random).tell() + "\n"
        remaining -= len(line)
        if remaining < 0:
            return "".join(lines)
        lines.append(line)


@dataclass(frozen=True)
class Person:
    """A person in a story, with the pronouns for the person."""

    name: str
    trade: str
    mood: str
    they: str
    their: str


class Story:
    """A small world and the sentences that change it or report it."""

    def __init__(self, random: Random) -> None:
        self.random = random
        size = random.choice((2, 2, 2, 3))
        names = random.sample(WOMEN + MEN, size)
        trades, moods = random.sample(TRADES, size), random.sample(MOODS, size)
        self.people = [
            Person(name, trade, mood, *(("she", "her") if name in WOMEN else ("he", "his")))
            for name, trade, mood in zip(names, trades, moods, strict=True)
        ]
        self.good = random.choice(GOODS)
        self.owned = {person: random.randint(0, 10) for person in self.people}
        things = random.sample(TREASURES, random.randint(1, 2))
        self.materials = dict(zip(things, random.sample(MATERIALS, len(things)), strict=True))
        self.places = dict(zip(things, random.sample(PLACES, len(things)), strict=True))
        self.weather, self.season = random.choice(WEATHERS), random.choice(SEASONS)
        # A story has either a list, always read in order, or a road, walked back in reverse.
        self.has_list = random.random() < 0.5
        self.items = random.sample(PROVISIONS if self.has_list else LANDMARKS, random.randint(3, 4))
        self.subject: Person | None = None

    def tell(self) -> str:
        """Return the whole story as one line."""
        changes = (self._receive, self._give, self._lose, self._move)
        remarks = (self._compare, self._ask_place, self._ask_count, self._praise, self._retrace, self._remark)
        questions = (self._whose_trade, self._how_many, self._who_has_more, self._where, self._which_item)
        events = self.random.sample(changes + changes + remarks, self.random.randint(2, 6))
        texts = [self._title(), *self._opening()]
        texts += [event() for event in events]
        texts += [question() for question in self.random.sample(questions, 2)]
        return " ".join(sentence(text) for text in texts)

    def _title(self) -> str:
        return f"the {self.people[0].trade} and the {self._full(next(iter(self.places)))}"

    def _opening(self) -> list[str]:
        first, second, *others = self.people
        texts = [
            f"on {with_article(self.weather)} {self.season} {self._pick(DAYTIMES)} {first.name} the "
            f"{first.trade} met {second.name} the {second.trade} {self._pick(PLACES)}",
            *(f"with them was {person.name} the {person.trade}" for person in others),
            enumerated([f"{person.name} felt {person.mood}" for person in self.people]),
            enumerated([f"{person.name} had {self._goods(number)}" for person, number in self.owned.items()]),
            *(f"{with_article(self._full(thing))} stood {place}" for thing, place in self.places.items()),
        ]
        if self.has_list:
            texts.append(f"{first.name} had a list: {enumerated(self.items)}")
        else:
            texts.append(f"the road ran past {enumerated([f'the {mark}' for mark in self.items])}")
        return texts

    # Events, between the opening and the questions.

    def _receive(self) -> str:
        person = self._person()
        number = self.random.randint(1, 6)
        if self.owned[person] + number >= len(NUMBERS):
            return self._remark()
        self.owned[person] += number
        verb = self._pick(("bought", "found", "won", "was given"))
        text = f"{self._refer(person)} {verb} {self._goods(number)} {self._pick(PLACES)}"
        return text + self._pick(("", f" and now had {NUMBERS[self.owned[person]]}"))

    def _give(self) -> str:
        giver = self._person()
        taker = self._person(other_than=giver)
        number = self._part_of(giver)
        if number == 0 or self.owned[taker] + number >= len(NUMBERS):
            return self._ask_count()
        self.owned[giver] -= number
        self.owned[taker] += number
        verb = self._pick(("gave", "handed", "lent", "sold"))
        text = f"{self._refer(giver)} {verb} {taker.name} {self._goods(number)}"
        kept = f" and kept {NUMBERS[self.owned[giver]]}"
        return text + self._pick(("", kept, f", so {taker.name} had {NUMBERS[self.owned[taker]]}"))

    def _lose(self) -> str:
        person = self._person()
        number = self._part_of(person)
        if number == 0:
            return f"{self._refer(person)} had no {plural(self.good)} to lose"
        self.owned[person] -= number
        verb = self._pick(("lost", "dropped", "gave away", "left"))
        text = f"{self._refer(person)} {verb} {self._goods(number)} {self._pick(PLACES)}"
        return text + self._pick(("", f" and had {NUMBERS[self.owned[person]]} left"))

    def _compare(self) -> str:
        person = self._person()
        other = self._person(other_than=person)
        difference = self.owned[person] - self.owned[other]
        if difference == 0:
            return f"{self._refer(person)} had as many {plural(self.good)} as {other.name}"
        degree = "more" if difference > 0 else "fewer"
        return f"{self._refer(person)} had {NUMBERS[abs(difference)]} {degree} than {other.name}"

    def _move(self) -> str:
        thing = self._pick(list(self.places))
        old, new = self.places[thing], self._pick(PLACES)
        if new == old:
            return self._ask_place()
        self.places[thing] = new
        return f"{self._refer(self._person())} found the {thing} {old} and put it {new}"

    def _ask_place(self) -> str:
        thing, place = self._pick(list(self.places.items()))
        return self._dialogue(f"where is the {thing}?", f"the {self._full(thing)} is {place}")

    def _ask_count(self) -> str:
        answerer = self._person()
        reply = f"I have {self._goods(self.owned[answerer])}"
        return self._dialogue(f"how many {plural(self.good)} do you have?", reply, answerer)

    def _praise(self) -> str:
        praised = self._person()
        speaker = self._person(other_than=praised)
        self.subject = None
        return f'"You are the {self._pick(PRAISE)} {praised.trade} of all," {speaker.name} told {praised.name}'

    def _retrace(self) -> str:
        if self.has_list:
            return f"{self._refer(self.people[0])} read the list again: {enumerated(self.items)}"
        self.subject = None
        return f"the way home led past {enumerated([f'the {mark}' for mark in reversed(self.items)])}"

    def _remark(self) -> str:
        if self.random.random() < 0.5:
            self.subject = None
            return f"the {self.season} {self._pick(('air', 'sky'))} was still {self.weather}"
        person = self._person()
        return f"{self._refer(person)} was still {person.mood}"

    # Questions: each is answered by the state of the world at the end.

    def _whose_trade(self) -> str:
        person = self._person()
        return f"who was the {person.trade}? {person.name}"

    def _how_many(self) -> str:
        person = self._person()
        number = NUMBERS[self.owned[person]].capitalize()
        return f"how many {plural(self.good)} did {person.name} have in the end? {number}"

    def _who_has_more(self) -> str:
        person = self._person()
        other = self._person(other_than=person)
        richer = max(person, other, key=self.owned.__getitem__).name
        answer = "Neither" if self.owned[person] == self.owned[other] else richer
        return f"who had more {plural(self.good)}, {person.name} or {other.name}? {answer}"

    def _where(self) -> str:
        thing, place = self._pick(list(self.places.items()))
        return f"where was the {self._full(thing)} in the end? {place.capitalize()}"

    def _which_item(self) -> str:
        which, index = self._pick((("first", 0), ("second", 1), ("last", -1)))
        where = "on the list" if self.has_list else "on the way out"
        return f"what came {which} {where}? {self.items[index].capitalize()}"

    # Phrases.

    def _pick(self, options: Sequence[Choice]) -> Choice:
        return self.random.choice(options)

    def _person(self, other_than: Person | None = None) -> Person:
        """Choose a person, most often the subject of the last sentence."""
        if self.subject is not None and self.subject is not other_than and self.random.random() < 0.5:
            return self.subject
        return self._pick([person for person in self.people if person is not other_than])

    def _refer(self, person: Person) -> str:
        """Return `person` as the subject of a sentence: a pronoun only if it cannot mean anybody else."""
        pronoun = person is self.subject and self.random.random() < 0.7
        self.subject = person
        return person.they if pronoun else person.name

    def _part_of(self, person: Person) -> int:
        """Choose the number of goods of `person` that change hands; zero if there are none."""
        return min(self.owned[person], self.random.randint(1, 6))

    def _goods(self, number: int) -> str:
        """Return a number of this story's goods in words: "three plums", "one plum", "no plums"."""
        return f"{NUMBERS[number] if number else 'no'} {self.good if number == 1 else plural(self.good)}"

    def _full(self, thing: str) -> str:
        """Return a treasure with its material, which shorter mentions leave to the reader's memory."""
        return f"{self.materials[thing]} {thing}"

    def _dialogue(self, question: str, answer: str, answerer: Person | None = None) -> str:
        """Return a question of one person and the answer of another, `answerer` if given."""
        answerer = answerer or self._person()
        asker = self._person(other_than=answerer)
        self.subject = None
        answer = sentence(answer).removesuffix(".")
        return f'"{sentence(question)}" {asker.name} asked {answerer.name}. "{answer}," said {answerer.name}'
