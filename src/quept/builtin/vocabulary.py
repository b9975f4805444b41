"""Words of the built-in corpus, and the English to inflect and to join them."""

from collections.abc import Sequence


def _words(text: str, separator: str | None = None) -> list[str]:
    return [word.strip() for word in text.split(separator)]


WOMEN = _words("""Adela Brenna Calla Dorit Edda Fenna Greta Hanne Ilka Jorun Kerstin Ludmila Mirelle Nuria
Odile Petra Quilla Rosalind Sunniva Tamsin Ulrike Vesna Wilma Yrsa""")
MEN = _words("""Alaric Bastian Corin Dagfinn Emeric Florian Gustav Hektor Ivo Jarek Kasimir Leander Matthis
Niklas Osric Piotr Quentin Rufus Stellan Tobias Urban Viktor Wendel Yannick""")
TRADES = _words("""apothecary baker beekeeper blacksmith bookbinder brewer carpenter chandler clockmaker
cobbler cooper ferryman fiddler gardener glazier innkeeper locksmith mason miller painter potter saddler
shepherd tailor thatcher tinker weaver woodcutter""")
GOODS = _words("""acorn apple basket bead berry bottle brick bucket button candle carrot cherry chestnut coin
dish feather fish flute goose grape hammer herring horseshoe jar kite knife ladle leaf lemon loaf melon mouse
mushroom nail needle onion ox peach pear pebble peony plum potato pumpkin puppy radish ribbon sheep shelf
shell spool stamp thimble turnip walnut whistle""")
IRREGULAR_PLURALS = dict(
    pair.split(":")
    for pair in _words("""fish:fish goose:geese knife:knives leaf:leaves loaf:loaves mouse:mice ox:oxen
potato:potatoes sheep:sheep shelf:shelves""")
)
MATERIALS = _words("""amber brass bronze copper crystal ebony enamel golden granite iron ivory jade leather
marble oak pewter porcelain silver velvet walnut""")
TREASURES = _words("""anchor bell bowl box chalice comb compass crown drum fan goblet harp kettle key lantern
locket mask mirror pendant ring statue telescope trumpet vase""")
PLACES = _words(
    """at the ferry, at the market, at the mill, at the old fair, behind the bakery,
behind the barn, behind the stable, beside the fountain, beside the harbour, beside the well,
by the lighthouse, by the town gate, in the attic, in the cellar, in the chapel, in the forge, in the library,
in the orchard, in the tower, in the vineyard, near the cave, near the quarry, near the river,
near the windmill, on the balcony, on the hill, on the pier, under the arch, under the bridge,
under the stairs""",
    ",",
)
PROVISIONS = _words("""barley beans butter chalk charcoal cheese cinnamon flour garlic ginger glue honey ink
lard linen mustard oats oil paper pepper rice rope rye saffron salt soap sugar tar tea thread vinegar wax wool
yeast""")
LANDMARKS = _words("""abbey alder bakery birch castle cross dairy ditch elm fence fort garden hut inn kiln
lake meadow milestone moor pond ruin shed shrine signpost spring wall willow yard""")
WEATHERS = _words("""breezy bright chilly cloudy damp dreary foggy frosty gloomy hazy mild misty rainy stormy
sunny windy""")
SEASONS = _words("spring summer autumn winter")
DAYTIMES = _words("morning noon afternoon evening")
MOODS = _words("""angry anxious bored calm cheerful curious glad grumpy hopeful lonely merry proud sad shy
tired""")
PRAISE = _words("best boldest cleverest finest kindest luckiest quickest wisest")
NUMBERS = _words("""none one two three four five six seven eight nine ten eleven twelve thirteen fourteen
fifteen sixteen seventeen eighteen nineteen twenty""")


def plural(noun: str) -> str:
    """Return the plural of one of the nouns above."""
    if noun in IRREGULAR_PLURALS:
        return IRREGULAR_PLURALS[noun]
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def with_article(phrase: str) -> str:
    """Return `phrase` after "a" or, before a vowel, "an"."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def enumerated(items: Sequence[str]) -> str:
    """Join `items` with commas, and with "and" before the last."""
    return f"{', '.join(items[:-1])} and {items[-1]}"


def sentence(text: str) -> str:
    """Return `text` with a capital letter and, unless it is a question, a full stop."""
    return text[0].upper() + text[1:] + ("" if text.endswith("?") else ".")
