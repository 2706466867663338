"""Faces with known factors, drawn from a seed: DiceBear's "Pixel Art", a style on a grid of 16x16 pixels.

The factors of a face are frequent enough to be learnt; :mod:`hbench.store.drawn` draws it. A class of a colour is one
that a person can tell from the others on a few pixels: colours of the style that differ by fewer than 20 of 255 levels
in every channel share it, and so do those that are linked by such ones.
"""

from hbench.store.drawn import Draws, Style, flat, options_of
from hbench.store.labels import Factor

SKIN = {
    "light": ("ffdbac", "f5cfa0", "eac393", "e0b687"),
    "tan": ("cb9e6e",),
    "light brown": ("b68655",),
    "brown": ("a26d3d",),
    "dark brown": ("8d5524",),
}
HAIR = {
    "blond": ("cab188",),
    "light brown": ("a78961",),
    "brown": ("83623b",),
    "dark brown": ("603a14", "603015", "612616", "611c17"),
    "black": ("28150a",),
    "red": ("bd1700",),
    "blue": ("009bbd",),
    "green": ("91cb15",),
}
CLOTHES = {
    "sky blue": ("5bc0de",),
    "blue": ("428bca",),
    "navy": ("03396c",),
    "mint": ("88d8b0",),
    "green": ("44c585",),
    "emerald": ("00b159",),
    "coral": ("ff6f69",),
    "crimson": ("d11141",),
    "dark red": ("ae0001",),
    "cream": ("ffeead",),
    "yellow": ("ffd969",),
    "amber": ("ffc425",),
}
EYES = {
    "grey-blue": ("76778b", "697b94", "647b90", "5b7c8b", "588387"),
    "brown": ("876658",),
}
GLASSES = ("4b4b4b", "323232", "191919", "43677d", "5f705c", "a04b5d")
HATS = ("2e1e05", "2663a3", "989789", "3d8a6b", "cc6192", "614f8a", "a62116")
LIPS = ("d29985", "c98276", "e35d6a", "de0f0d")
EARRINGS = ("daa520", "ffd700", "fafad2", "d3d3d3", "a9a9a9")
FACTORS = (
    Factor("skin", tuple(SKIN)),
    Factor("hair", ("short", "long")),
    Factor("hair colour", tuple(HAIR)),
    Factor("glasses", ("none", "light", "dark")),
    Factor("hat", ("no", "yes")),
    Factor("beard", ("no", "yes")),
    Factor("mouth", ("sad", "happy")),
    Factor("earrings", ("no", "yes")),
    Factor("clothes colour", tuple(CLOTHES)),
    Factor("eye colour", tuple(EYES)),
)


def draw_options(draws: Draws) -> tuple[dict[str, object], list[int]]:
    """Return the options of a face for the style, and its class in each of :data:`FACTORS`.

    Glasses have a share of 30 %, hats and beards of 15 %, earrings of 10 %; all else is uniform over what the style
    has, so that a class of several colours has the share of all of them.
    """
    pick, chance = draws.pick, draws.chance

    def variant(prefix: str, count: int) -> str:
        return f"{prefix}{pick(range(1, count + 1)):02d}"

    skin, skin_colour = pick(flat(SKIN))
    hair, hair_colour = pick(flat(HAIR))
    clothes, clothes_colour = pick(flat(CLOTHES))
    eyes, eye_colour = pick(flat(EYES))
    is_long, is_happy = chance(0.5), chance(0.5)
    has_glasses, are_dark = chance(0.3), chance(0.5)
    has_hat, has_beard, has_earrings = chance(0.15), chance(0.15), chance(0.1)
    options = {
        "skinColor": skin_colour,
        "hairVariant": variant("long", 21) if is_long else variant("short", 24),
        "hairColor": hair_colour,
        "clothesVariant": variant("variant", 23),
        "clothingColor": clothes_colour,
        "eyesVariant": variant("variant", 12),
        "eyesColor": eye_colour,
        "mouthVariant": variant("happy", 13) if is_happy else variant("sad", 10),
        "mouthColor": pick(LIPS),
        "glassesVariant": variant("dark" if are_dark else "light", 7),
        "glassesColor": pick(GLASSES),
        "hatVariant": variant("variant", 10),
        "hatColor": pick(HATS),
        "beardVariant": variant("variant", 8),
        "accessoriesVariant": variant("variant", 4),
        "accessoriesColor": pick(EARRINGS),
    }
    shown = {"glasses": has_glasses, "hat": has_hat, "beard": has_beard, "accessories": has_earrings}
    classes = [
        skin,
        int(is_long),
        hair,
        has_glasses * (1 + are_dark),
        int(has_hat),
        int(has_beard),
        int(is_happy),
        int(has_earrings),
        clothes,
        eyes,
    ]
    return options_of(options, shown), classes


FACES = Style(
    name="faces",
    file="pixel-art.json",
    size=16,
    source="Pixel Art by DiceBear, drawn by dicebear-core (MIT)",
    licence="CC0 1.0",
    factors=FACTORS,
    draw_options=draw_options,
    mirrors=True,
    published={
        "train": "c0ee062fab7299ef3c33980864baf6767df0de6865b13fe6c96ac000201a47f1",
        "test": "63a8e08b287a915b9c47e0ca818576273077c87071abc89d472a4e850dad6749",
    },
    published_by="10.6.0",
)
