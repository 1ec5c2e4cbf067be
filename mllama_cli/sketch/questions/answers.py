"""Answer sentences: one wording for each fact, so that the answer is a function of image and question."""

from collections.abc import Sequence

from mllama_cli.sketch.language.wording import PLACES, Ref, article, counted, listed, named, plural
from mllama_cli.sketch.questions.scene_queries import SceneQueries
from mllama_cli.sketch.scenes.scene import Lettering, Shape

LIMITS = "Sorry, I only know simple drawings and short printed text."
NO_PICTURE = "Please show me a drawing first."
UNCHANGED = "Nothing changed."


def says(lettering: Lettering) -> str:
    """Return the printed text in double quotes, which the tokenizer spells character by character."""
    return '"' + lettering.text.replace("\n", " ") + '"'


def caption(queries: SceneQueries) -> str:
    """Name everything, grouped by shape and then by colour; text last."""
    items = [counted(number, name) for number, name in queries.groups]
    text = queries.scene.lettering
    if text is not None:
        items.append(f"the {text.colour} text {says(text)}")
    return f"I see {listed(items)}." if items else "I see an empty picture."


def in_order(shapes: Sequence[Shape]) -> str:
    return f"From left to right: {listed([article(shape.name) for shape in shapes])}."


def with_places(pairs: Sequence[tuple[Shape, str]]) -> str:
    return f"I see {listed([f'{article(shape.name)} {PLACES[zone]}' for shape, zone in pairs])}."


def count(number: int, ref: Ref) -> str:
    if number == 1:
        return f"There is 1 {named(ref)}."
    return f"There are {number or 'no'} {plural(named(ref))}."


def absent(ref: Ref) -> str:
    if ref[1] is None:
        return f"There is nothing {ref[0]} in the picture."
    return f"There is no {named(ref)} in the picture."


def colour(kind: str, colours: Sequence[str], number: int) -> str:
    return f"The {kind if number == 1 else plural(kind)} {'is' if number == 1 else 'are'} {listed(colours)}."


def all_colours(colours: Sequence[str]) -> str:
    return f"The only colour is {colours[0]}." if len(colours) == 1 else f"The colours are {listed(colours)}."


def shapes_of(ref_colour: str, groups: Sequence[tuple[int, str]]) -> str:
    """Name the shapes of one colour; groups are (count, kind)."""
    if len(groups) == 1 and groups[0][0] == 1:
        return f"The {ref_colour} shape is {article(groups[0][1])}."
    return f"The {ref_colour} shapes are {listed([counted(number, kind) for number, kind in groups])}."


def where(name: str, zone: str) -> str:
    return f"The {name} is {PLACES[zone]}."


def where_all(name: str, zones: Sequence[str]) -> str:
    return f"The {plural(name)} are {listed([PLACES[zone] for zone in zones])}."


def at_zone(shape: Shape | None, zone: str) -> str:
    what = article(shape.name) if shape else "nothing"
    return f"There is {what} {PLACES[zone]}."


def exists(number: int, ref: Ref) -> str:
    if number == 0:
        return f"No, there is no {named(ref)}."
    return f"Yes, there is {article(named(ref))}." if number == 1 else f"Yes, there are {number} {plural(named(ref))}."


def relation(one: str, relation_name: str, other: str, yes: bool | None = None) -> str:
    start = "" if yes is None else "Yes, " if yes else "No, "
    sentence = f"the {one} is {relation_name} the {other}."
    return start + sentence if start else sentence[0].upper() + sentence[1:]


def nothing_there(relation_name: str, other: str) -> str:
    return f"Nothing is {relation_name} the {other}."


def extreme(shape: Shape, biggest: bool) -> str:
    return f"The {'biggest' if biggest else 'smallest'} shape is the {shape.name}."


def reads(lettering: Lettering | None) -> str:
    return f"It says {says(lettering)}." if lettering else "There is no text in the picture."
