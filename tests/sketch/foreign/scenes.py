"""Drawings and questions written by hand, apart from the package: what the built-in model should get right.

A thing is (shape, colour, x, y, size): the centre in fractions of the image, the size in fractions of its shorter side.
A question is (text, task, keywords); all keywords must be in the answer, ``a|b`` means either.
"""

from typing import NamedTuple

Thing = tuple[str, str, float, float, float]
Question = tuple[str, str, list[str]]


class Drawing(NamedTuple):
    name: str
    size: tuple[int, int]
    things: list[Thing]
    questions: list[Question]
    ground: str = "white"


SHAPES = [
    Drawing(
        "three-circles",
        (480, 360),
        [
            ("circle", "red", 0.2, 0.25, 0.25),
            ("circle", "red", 0.5, 0.7, 0.25),
            ("circle", "red", 0.8, 0.3, 0.25),
            ("square", "blue", 0.18, 0.75, 0.26),
            ("star", "gold", 0.82, 0.78, 0.3),
        ],
        [
            ("How many circles are there?", "count", ["3"]),
            ("What colour is the star?", "colour", ["yellow"]),
            ("Where's the square?", "where", ["bottom left"]),
            ("Describe this image.", "describe", ["3 red circles", "blue square", "yellow star"]),
        ],
    ),
    Drawing(
        "green-triangle",
        (300, 300),
        [("triangle", "green", 0.5, 0.5, 0.5)],
        [
            ("What shape is this?", "shape", ["triangle"]),
            ("what colour is the triangle", "colour", ["green"]),
            ("Is there a circle?", "exists", ["no"]),
        ],
    ),
    Drawing(
        "traffic",
        (200, 500),
        [
            ("circle", "red", 0.5, 0.18, 0.6),
            ("circle", "gold", 0.5, 0.5, 0.6),
            ("circle", "green", 0.5, 0.82, 0.6),
        ],
        [
            ("What colour are the circles?", "colour", ["red", "yellow", "green"]),
            ("How many shapes do you see?", "count", ["3"]),
            ("What is at the top?", "where", ["red circle"]),
        ],
    ),
    Drawing(
        "row-of-four",
        (800, 220),
        [
            ("square", "purple", 0.12, 0.5, 0.5),
            ("triangle", "orange", 0.37, 0.5, 0.5),
            ("circle", "black", 0.62, 0.5, 0.5),
            ("heart", "red", 0.87, 0.5, 0.5),
        ],
        [
            (
                "List the shapes from left to right.",
                "describe",
                ["purple square", "orange triangle", "black circle", "red heart"],
            ),
            ("Where is the heart?", "where", ["right"]),
            ("How many red things are there?", "count", ["1"]),
            ("Is the square to the left of the circle?", "relation", ["yes"]),
        ],
    ),
    Drawing(
        "big-and-small",
        (640, 480),
        [("star", "blue", 0.25, 0.4, 0.55), ("star", "red", 0.78, 0.68, 0.25)],
        [
            ("Which is bigger, the red star or the blue star?", "compare", ["blue"]),
            ("How many stars are in the picture?", "count", ["2"]),
            ("Which shape is the smallest?", "compare", ["red star"]),
            ("What colours are the stars?", "colour", ["red", "blue"]),
        ],
    ),
    Drawing(
        "six-dots",
        (400, 400),
        [("circle", "black", x, y, 0.14) for x in (0.25, 0.75) for y in (0.2, 0.5, 0.8)],
        [
            ("How many dots are there?", "count", ["6"]),
            ("How many squares are there?", "count", ["no|0"]),
            ("caption this", "describe", ["6 black circles"]),
        ],
    ),
    Drawing(
        "cross-on-tint",
        (360, 240),
        [("cross", "red", 0.5, 0.5, 0.5)],
        [
            ("What is this?", "describe", ["red cross"]),
            ("what shape is the red thing?", "shape", ["cross"]),
            ("Where is the cross?", "where", ["middle"]),
        ],
        "#eef6ff",
    ),
    Drawing(
        "diamond-and-ring",
        (500, 500),
        [("diamond", "orange", 0.22, 0.22, 0.3), ("ring", "green", 0.76, 0.76, 0.34)],
        [
            ("Where is the diamond?", "where", ["top left"]),
            ("What's in the bottom right corner?", "where", ["green ring"]),
            ("What colour is the ring?", "colour", ["green"]),
            ("Is there a star in the picture?", "exists", ["no"]),
        ],
    ),
    Drawing(
        "night",
        (600, 400),
        [
            ("star", "white", 0.2, 0.22, 0.22),
            ("star", "white", 0.5, 0.2, 0.22),
            ("star", "white", 0.8, 0.25, 0.22),
            ("circle", "yellow", 0.75, 0.75, 0.3),
        ],
        [
            ("How many white stars?", "count", ["3"]),
            ("What colour is the circle?", "colour", ["yellow"]),
            ("Are there any hearts?", "exists", ["no"]),
        ],
        "#101a3a",
    ),
    Drawing(
        "arrows",
        (420, 300),
        [("arrow-right", "blue", 0.25, 0.3, 0.35), ("arrow-up", "red", 0.75, 0.6, 0.4)],
        [
            ("Which way does the blue arrow point?", "shape", ["right"]),
            ("Which way does the red arrow point?", "shape", ["up"]),
            ("How many arrows are there?", "count", ["2"]),
        ],
    ),
    Drawing(
        "above-below",
        (300, 420),
        [("square", "brown", 0.5, 0.78, 0.4), ("triangle", "red", 0.5, 0.28, 0.45)],
        [
            ("What is above the square?", "relation", ["red triangle"]),
            ("What is below the triangle?", "relation", ["brown square"]),
            ("Is the triangle below the square?", "relation", ["no"]),
        ],
    ),
    Drawing(
        "mixed-five",
        (720, 540),
        [
            ("circle", "blue", 0.15, 0.2, 0.2),
            ("circle", "blue", 0.5, 0.2, 0.2),
            ("square", "green", 0.84, 0.22, 0.2),
            ("heart", "hotpink", 0.2, 0.75, 0.26),
            ("square", "green", 0.8, 0.75, 0.22),
        ],
        [
            ("What do you see?", "describe", ["2 blue circles", "2 green squares", "pink heart"]),
            ("How many green squares are there?", "count", ["2"]),
            ("what is pink", "shape", ["heart"]),
            ("Where is the heart?", "where", ["bottom left"]),
        ],
    ),
    Drawing(
        "gray-and-black",
        (480, 320),
        [("square", "gray", 0.25, 0.5, 0.4), ("circle", "black", 0.75, 0.5, 0.4)],
        [
            ("Which color is the square?", "colour", ["gray|grey"]),
            ("What is to the right of the square?", "relation", ["black circle"]),
            ("Is there a gray circle?", "exists", ["no"]),
        ],
    ),
    Drawing(
        "hearts",
        (400, 400),
        [
            ("heart", "red", 0.25, 0.25, 0.26),
            ("heart", "red", 0.75, 0.25, 0.26),
            ("heart", "purple", 0.25, 0.75, 0.26),
            ("heart", "red", 0.75, 0.75, 0.26),
        ],
        [
            ("How many hearts?", "count", ["4"]),
            ("How many red hearts can you see?", "count", ["3"]),
            ("Where is the purple heart?", "where", ["bottom left"]),
        ],
        "#fff7e0",
    ),
    Drawing(
        "rectangle-line",
        (640, 360),
        [("rectangle", "orange", 0.3, 0.35, 0.5), ("line", "blue", 0.65, 0.8, 0.8)],
        [
            ("What colour is the rectangle?", "colour", ["orange"]),
            ("Is there a line?", "exists", ["yes"]),
            ("Describe the picture.", "describe", ["orange rectangle", "blue line"]),
        ],
    ),
    Drawing(
        "oval",
        (360, 360),
        [("oval", "purple", 0.5, 0.5, 0.6)],
        [
            ("What shape is this?", "shape", ["oval"]),
            ("What is the colour of the oval?", "colour", ["purple"]),
        ],
    ),
    Drawing(
        "tiny-icon",
        (72, 72),
        [("star", "red", 0.5, 0.5, 0.7)],
        [
            ("What is this?", "describe", ["red star"]),
            ("What colour is the star?", "colour", ["red"]),
        ],
    ),
    Drawing(
        "wide-banner",
        (900, 240),
        [("triangle", "green", 0.15, 0.5, 0.6), ("circle", "orange", 0.5, 0.5, 0.4), ("square", "red", 0.85, 0.5, 0.6)],
        [
            ("What is in the middle?", "where", ["orange circle"]),
            ("what is left of the circle?", "relation", ["green triangle"]),
            ("How many objects are there?", "count", ["3"]),
            ("What colour is the star?", "colour", ["no star"]),
        ],
        "#f3f3e8",
    ),
]

TEXTS = [
    ("HELLO", "black", "white", (480, 240)),
    ("Open", "darkgreen", "white", (400, 300)),
    ("2048", "#222222", "#f5e8c7", (420, 260)),
    ("WELCOME", "white", "#204080", (640, 240)),
    ("coffee", "saddlebrown", "#fff8ee", (500, 320)),
    ("EXIT", "red", "white", (300, 200)),
    ("Friday", "blue", "white", (600, 600)),
    ("ROOM 27", "black", "#ffe97f", (520, 200)),
    ("1234567890", "black", "white", (640, 200)),
    ("Library", "purple", "white", (480, 360)),
]
"""(text, ink, ground, size)"""

SAID_COLOURS = {"darkgreen": "green", "#222222": "black", "saddlebrown": "brown"}

CHANGES = [
    (
        Drawing("before-star", (400, 300), [("circle", "red", 0.3, 0.5, 0.35)], []),
        Drawing("after-star", (400, 300), [("circle", "red", 0.3, 0.5, 0.35), ("star", "blue", 0.75, 0.5, 0.35)], []),
        [
            ("What changed?", "change", ["blue star", "added"]),
            ("Are the pictures the same?", "change", ["no|different"]),
        ],
    ),
    (
        Drawing(
            "before-square", (360, 360), [("square", "green", 0.5, 0.5, 0.4), ("circle", "black", 0.2, 0.2, 0.2)], []
        ),
        Drawing("after-square", (360, 360), [("square", "red", 0.5, 0.5, 0.4), ("circle", "black", 0.2, 0.2, 0.2)], []),
        [("What is different?", "change", ["square", "red"])],
    ),
    (
        Drawing("before-heart", (500, 300), [("heart", "red", 0.2, 0.5, 0.4), ("cross", "blue", 0.7, 0.5, 0.4)], []),
        Drawing("after-heart", (500, 300), [("cross", "blue", 0.7, 0.5, 0.4)], []),
        [("what changed between the two pictures?", "change", ["red heart", "gone"])],
    ),
]
