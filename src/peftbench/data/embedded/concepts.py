"""The things that the embedded data sets draw: which of the pack's 365, under which name and kind.

Chosen by eye: drawn recognisably by all artists, one word that people use, one kind that is beyond dispute
(so no tomatoes, no spiders among the insects). Things of kind "" are named but never classified.
"""

from __future__ import annotations

# kind -> {label in the pack: everyday name}; where label and name are equal the name is left out with "".
SELECTION: dict[str, dict[str, str]] = {
    "mammal": {
        "monkey face": "monkey",
        "dog face": "dog",
        "fox": "",
        "cat face": "cat",
        "lion": "",
        "cow face": "cow",
        "pig face": "pig",
        "elephant": "",
        "mouse face": "mouse",
        "rabbit face": "rabbit",
        "koala": "",
        "panda": "",
    },
    "bird": {
        "chicken": "",
        "penguin": "",
        "duck": "",
        "owl": "",
    },
    "reptile": {"crocodile": "", "turtle": "", "lizard": "", "snake": ""},
    "sea animal": {
        "spouting whale": "whale",
        "fish": "",
        "shark": "",
        "octopus": "",
        "crab": "",
    },
    "insect": {"butterfly": "", "ant": "", "honeybee": "bee", "lady beetle": "ladybug"},
    "flower": {"rose": "", "sunflower": "", "tulip": ""},
    "plant": {"palm tree": "", "cactus": "", "shamrock": ""},
    "fruit": {
        "watermelon": "",
        "lemon": "",
        "banana": "",
        "pineapple": "",
        "red apple": "apple",
        "pear": "",
        "strawberry": "",
        "kiwi fruit": "kiwi",
    },
    "vegetable": {
        "eggplant": "",
        "carrot": "",
        "ear of corn": "corn",
        "hot pepper": "",
    },
    "dish": {
        "hamburger": "",
        "french fries": "fries",
        "pizza": "",
        "hot dog": "",
        "green salad": "salad",
        "sushi": "",
    },
    "dessert": {
        "soft ice cream": "ice cream",
        "doughnut": "",
        "cookie": "",
        "birthday cake": "cake",
        "lollipop": "",
    },
    "drink": {
        "glass of milk": "milk",
        "hot beverage": "coffee",
        "cocktail glass": "cocktail",
        "beer mug": "beer",
    },
    "building": {
        "house": "",
        "hospital": "",
        "factory": "",
        "castle": "",
        "church": "",
    },
    "vehicle": {
        "locomotive": "train",
        "bus": "",
        "ambulance": "",
        "fire engine": "",
        "taxi": "",
        "automobile": "car",
        "tractor": "",
        "motorcycle": "",
        "bicycle": "",
    },
    "boat": {"sailboat": "", "canoe": "", "ship": ""},
    "aircraft": {"airplane": "", "helicopter": "", "rocket": ""},
    "clock": {
        "hourglass done": "hourglass",
        "watch": "",
        "alarm clock": "",
    },
    "weather": {"sun": "", "cloud": "", "cloud with rain": "rain", "tornado": ""},
    "ball": {
        "soccer ball": "",
        "baseball": "",
        "basketball": "",
    },
    "clothing": {
        "necktie": "",
        "t-shirt": "shirt",
        "jeans": "",
        "dress": "",
        "woman’s boot": "boot",
        "top hat": "hat",
    },
    "instrument": {"saxophone": "", "trumpet": "", "guitar": "", "violin": "", "drum": ""},
    "tool": {"hammer": "", "wrench": "", "scissors": ""},
    "device": {
        "telephone": "",
        "laptop": "",
        "television": "",
        "camera": "",
        "radio": "",
        "battery": "",
    },
    "stationery": {
        "pencil": "",
        "notebook": "",
        "clipboard": "",
        "envelope": "",
    },
    "": {
        "bed": "",
        "key": "",
        "locked": "lock",
        "bomb": "",
        "bell": "",
        "gem stone": "gem",
        "balloon": "",
        "candle": "",
        "microscope": "",
        "anchor": "",
        "crown": "",
        "star": "",
        "Christmas tree": "christmas tree",
    },
}

# Where a thing of this kind is usually found or used: the "outside knowledge" of the OKVQA-like set.
PLACES: dict[str, tuple[str, ...]] = {
    "bird": ("sky", "nest"),
    "sea animal": ("sea", "ocean"),
    "insect": ("garden", "meadow"),
    "flower": ("garden", "meadow"),
    "fruit": ("tree", "orchard"),
    "vegetable": ("field", "farm"),
    "dish": ("restaurant", "kitchen"),
    "dessert": ("bakery", "kitchen"),
    "drink": ("cafe", "bar"),
    "building": ("city", "town"),
    "vehicle": ("road", "street"),
    "boat": ("water", "sea"),
    "aircraft": ("sky", "airport"),
    "ball": ("stadium", "field"),
    "clothing": ("closet", "shop"),
    "instrument": ("concert", "orchestra"),
    "tool": ("workshop", "garage"),
    "stationery": ("office", "school"),
}

# Words that are drawn: real writers, kinds of book, and what labels on tins say. At most seven letters, so that
# a word fits the picture at a height that the vision tower can read.
AUTHORS = tuple(
    "austen byron camus dante defoe eliot goethe hesse huxley ibsen joyce kafka orwell twain woolf zola".split()
)
GENRES = ("poems", "drama", "novel", "essays", "tales", "history")
LABELS = ("milk", "tea", "salt", "rice", "soup", "corn", "beans", "cocoa", "honey", "sugar")
DIGITS = tuple("0123456789")
WORDS = (*AUTHORS, *GENRES, *LABELS, *DIGITS)
