"""People with known factors, drawn from a seed: "Open Peeps", a style of lines and flat colours.

It is drawn at 64x64 pixels and resized to what an experiment wants. The factors are frequent enough to be learnt;
:mod:`hbench.store.drawn` draws them.
"""

from hbench.store.drawn import Draws, Style, options_of
from hbench.store.labels import Factor

SKIN = ("ffdbb4", "edb98a", "d08b5b", "ae5d29", "694d3d")
"""Colours of the skin, from light to dark."""
HAIR = {
    "bald": ("noHair1", "noHair2", "noHair3"),
    "short": (
        *("flatTop", "flatTopLong", "grayShort", "mohawk", "mohawk2", "pomp", "shaved1", "shaved2", "shaved3"),
        *("short1", "short2", "short3", "short4", "short5", "twists", "twists2"),
    ),
    "long": (
        *("bangs", "bangs2", "cornrows", "cornrows2", "grayMedium", "long", "longBangs", "longCurly"),
        *("medium1", "medium2", "medium3", "mediumBangs", "mediumBangs2", "mediumBangs3", "mediumStraight"),
    ),
    "afro": ("afro", "dreads1", "dreads2", "longAfro"),
    "bun": ("bantuKnots", "bun", "bun2", "buns", "grayBun"),
    "covered": ("hatBeanie", "hatHip", "hijab", "turban"),
}
"""Heads of the style by the kind of hair; the head of a bear is left out."""
HAIR_COLOURS = {"black": "000000", "brown": "5a2d0c", "red": "8c1c13", "blue": "1f2f7a", "green": "1c5a2a"}
"""Colours of hair, beard and lines; all are darker than the skin, or the lines of the face would not be seen."""
EXPRESSIONS = {
    "happy": (
        *("calm", "cheeky", "cute", "eatingHappy", "lovingGrin1", "lovingGrin2", "smile", "smileBig", "smileLOL"),
        "smileTeethGap",
    ),
    "neutral": ("blank", "eyesClosed", "serious", "suspicious"),
    "sad or angry": (*("angryWithFang", "concerned", "concernedFear", "fear", "rage", "solemn", "tired", "veryAngry"),),
}
"""Faces of the style by expression; those of monsters, and those whose name tells none, are left out."""
BEARDS = (
    *("chin", "full", "full2", "full3", "full4", "goatee1", "goatee2"),
    *("moustache2", "moustache3", "moustache5", "moustache6", "moustache7", "moustache9"),
)
"""Beards and moustaches, without those of thin lines."""
GLASSES = {
    "glasses": ("glasses", "glasses2", "glasses3", "glasses4", "glasses5"),
    "sunglasses": ("sunglasses", "sunglasses2"),
}
MASKS = ("medicalMask", "respirator")
CLOTHES = {
    "blue": "8fa7df",
    "green": "78e185",
    "orange": "ffcf77",
    "pink": "e279c7",
    "red": "e78276",
    "turquoise": "9ddadb",
    "yellow": "fdea6b",
}
FACTORS = (
    Factor("skin", tuple(f"tone {i + 1}" for i in range(len(SKIN)))),
    Factor("hair", tuple(HAIR)),
    Factor("hair colour", tuple(HAIR_COLOURS)),
    Factor("beard", ("no", "yes")),
    Factor("glasses", ("none", *GLASSES)),
    Factor("mask", ("no", "yes")),
    Factor("expression", tuple(EXPRESSIONS)),
    Factor("clothes colour", tuple(CLOTHES)),
)


def draw_options(draws: Draws) -> tuple[dict[str, object], list[int]]:
    """Return the options of a person for the style, and the class in each of :data:`FACTORS`.

    Glasses and sunglasses have a share of 20 % each, beards of 20 %, masks of 10 %, and all else is uniform.
    """
    pick, chance = draws.pick, draws.chance
    skin, hair, hair_colour = pick(SKIN), pick(list(HAIR)), pick(list(HAIR_COLOURS))
    expression, clothes = pick(list(EXPRESSIONS)), pick(list(CLOTHES))
    has_glasses, are_dark = chance(0.4), chance(0.5)
    has_beard, has_mask = chance(0.2), chance(0.1)
    options = {
        "skinColor": skin,
        "headVariant": pick(HAIR[hair]),
        "inkColor": HAIR_COLOURS[hair_colour],
        "headContrastColor": HAIR_COLOURS[hair_colour],
        "expressionVariant": pick(EXPRESSIONS[expression]),
        "facialHairVariant": pick(BEARDS),
        "accessoriesVariant": pick(GLASSES["sunglasses" if are_dark else "glasses"]),
        "maskVariant": pick(MASKS),
        "clothingColor": CLOTHES[clothes],
    }
    shown = {"facialHair": has_beard, "accessories": has_glasses, "mask": has_mask}
    classes = [
        SKIN.index(skin),
        list(HAIR).index(hair),
        list(HAIR_COLOURS).index(hair_colour),
        int(has_beard),
        has_glasses * (1 + are_dark),
        int(has_mask),
        list(EXPRESSIONS).index(expression),
        list(CLOTHES).index(clothes),
    ]
    return options_of(options, shown), classes


PEEPS = Style(
    name="peeps",
    file="open-peeps.json",
    size=64,
    source="Open Peeps by Pablo Stanley, drawn by dicebear-core (MIT)",
    licence="CC0 1.0",
    factors=FACTORS,
    draw_options=draw_options,
    mirrors=False,  # all look to the right
    published={
        "train": "2dc93dcc7ddf17801a6375a13f516fcc57f8b745c4d9a772631e22fb14aadf73",
        "test": "43414935a84ccf1b469225b0cb81a553872dfa96f09b8fb15d1b117738c82d01",
    },
    published_by="10.6.0",
)
