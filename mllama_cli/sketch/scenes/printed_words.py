"""Text for cards: common words, invented ones, random letters, numbers. No ambiguous case or digits."""

import random

MAX_LENGTH = 12

_COMMON = """
about above after again air all always animal answer apple april arm art ask august autumn away baby back bag ball
banana bank bar bath bear beauty bed begin bell best big bike bird birthday black blue board boat book border bottle box
boy bread break bridge bright bring brother brown building bus butter button buy cafe cake call camera camp candle car
card cat chair change cheese cherry child circle city clean clear clock close closed cloud coat coffee cold color colour
come computer cook corner country cow cup dance danger dark date day december deep desk dinner doctor dog door down
draw dream dress drink drive dry earth east easy eat egg eight elephant empty end enter entry evening exit eye family
farm fast father february field fire first fish five floor flower food foot forest fork four free fresh friday friend
fruit full garden gate gift girl give glass go goal gold good grass great green guest guitar hair hall hand happy
harbor hat head heart heaven hello help here high hill holiday home honey hope horse hospital hot hotel hour house
ice idea inside island january jazz joy juice july jump june keep key king kitchen knife lake lamp large late laugh
leaf learn leave left lemon letter library light lion list little long look love lucky lunch machine magic make
man map march market may meat menu metal milk minute mirror monday money month moon morning mother mountain mouse
mouth movie museum music name new news night nine north november number october office oil open orange out oven
page paint paper parade park party past peace pen pencil people pepper phone photo piano picture pink pizza place
plane plant plate play please police pool post potato power press price private public pull purple push queen
question quick quiet radio rain read ready red rest rice right ring river road rock roof room rose salad sale salt
sand saturday school sea season seat september seven shark sheep ship shirt shoe shop short sign silence silver simple
sister six sky sleep slow small smile snow soap soft song soup south special spoon spring square star start station
stone stop store storm story street strong student sugar summer sun sunday sweet swim table tall taxi tea teacher
team thank theater three thunder thursday ticket tiger time toast today tomato tomorrow tower town toy train travel
tree truck tuesday turn two under up vacation valley village violet visit wait walk wall warm warning wash watch water
way wednesday week welcome west wheel white wild wind window wine winter wish wolf woman wonder wood word work world
write yard year yellow yes yesterday young zebra zero zoo
""".split()  # noqa: SIM905

_STARTS = (
    "b bl br c ch cl cr d dr f fl fr g gl gr h j k l m n p pl pr qu r s sh sk sl sn sp st str t th tr v w y z".split()  # noqa: SIM905
)
_MIDDLES = "a a e e i i o o u ai ea ee oa oo ou y".split()  # noqa: SIM905
_ENDS = "b ck d ft g k l ll m mp n nd ng nk nt p r rd rk rn rt s sh sk ss st t th x".split()  # noqa: SIM905

_SAME_IN_BOTH_CASES = frozenset("cosuvwxz")
"""Letters whose capital is only larger: a word made of them alone does not show its case."""

_CLEAR_CAPITALS = "ABCDEFGHJKLMNPQRSTUVWXYZ"
_CLEAR_DIGITS = "23456789"


def printed_text(rng: random.Random) -> str:
    """Return text to print, of at most MAX_LENGTH characters; a tenth has two words, separated by a space."""
    draw = rng.random()
    if draw < 0.10:
        first, second = printed_word(rng, 7), printed_word(rng, 6)
        text = f"{first} {second}"
        return text if len(text) <= MAX_LENGTH else first
    return printed_word(rng, MAX_LENGTH)


def printed_word(rng: random.Random, longest: int) -> str:
    """Return one word or number without spaces."""
    while True:
        draw = rng.random()
        if draw < 0.30:
            text = _cased(rng, rng.choice(_COMMON))
        elif draw < 0.50:
            text = _cased(rng, _invented(rng, longest))
        elif draw < 0.74:
            length = min(longest, rng.randint(1, 12) if rng.random() < 0.5 else rng.randint(2, 7))
            text = _cased(rng, "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(length)))
        elif draw < 0.92:
            length = min(longest, rng.choice((1, 2, 2, 3, 3, 4, 4, 5, 6, 7, 8, 9, 10, 11, 12)))
            text = "".join(rng.choice("0123456789") for _ in range(length))
        else:
            letters = "".join(rng.choice(_CLEAR_CAPITALS) for _ in range(rng.randint(1, 4)))
            digits = "".join(rng.choice(_CLEAR_DIGITS) for _ in range(rng.randint(1, 4)))
            text = letters + digits if rng.random() < 0.8 else digits + letters
        if len(text) <= longest and is_clear(text):
            return text


def is_clear(text: str) -> bool:
    """Return whether print shows unambiguously which characters these are.

    >>> is_clear("HELLO"), is_clear("sox"), is_clear("Ill"), is_clear("O")
    (True, False, False, False)
    """
    letters = [char for char in text if char.isalpha()]
    if not letters:
        return True
    if all(char.lower() in _SAME_IN_BOTH_CASES for char in letters):
        return False
    if any(char.isdigit() for char in text):
        return not set(text) & set("OIl01o")
    if text[0] == "I" and not text.isupper():
        return False
    return text not in ("I", "l", "LL", "ll", "II", "IL", "LI") and set(text) not in ({"l"}, {"I"})


def _cased(rng: random.Random, word: str) -> str:
    return rng.choice((word.upper(), word.upper(), word, word.capitalize()))


def _invented(rng: random.Random, longest: int) -> str:
    word = ""
    for _ in range(rng.choice((1, 2, 2, 2, 3, 3, 4))):
        syllable = rng.choice(_STARTS) + rng.choice(_MIDDLES) + (rng.choice(_ENDS) if rng.random() < 0.5 else "")
        if len(word + syllable) > longest:
            break
        word += syllable
    return word or "card"
