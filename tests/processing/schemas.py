"""Two hundred JSON schemas, from families of what people ask for."""

from itertools import count
from typing import Any

Schema = dict[str, Any]

STRING: Schema = {"type": "string", "maxLength": 12}
SIMPLE: list[Schema] = [
    STRING, {"type": "integer"}, {"type": "number"}, {"type": "boolean"}, {"type": "null"},
    {"enum": ["red", "green", "blue"]}, {"const": "fixed"},
    {"type": "array", "items": {"type": "integer"}, "maxItems": 3},
]  # fmt: skip
NAMES = [
    "name",
    "total",
    "größe",
    "日本",
    "a b",
    'quo"ted',
    "back\\slash",
    "tab\tkey",
    "😀",
    "$ref",
    "enum",
    "1",
    "",
    "a/b~c",
]
FORMATS = ["date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"]
TEXTS = [
    "",
    "é",
    "日本語",
    "😀",
    '"',
    "\\",
    "/",
    "\n",
    "\t\r",
    "\x01",
    "\u2028",
    "<|eot_id|>",
    "null",
    "a" * 300,
    "{}",
    " x ",
]


def closed(properties: Schema, required: list[str] | None = None) -> Schema:
    """An object of these properties only."""
    names = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


def _objects() -> list[Schema]:
    made = [closed({name: SIMPLE[i] for i, name in enumerate(NAMES[:size])}) for size in range(1, 9)]
    made += [closed({name: SIMPLE[(i + 1) % 8]}) for i, name in enumerate(NAMES)]
    made += [closed({"a": each, "b": each, "c": STRING}, ["b"]) for each in SIMPLE]
    made += [closed({"a": each, "b": STRING}, []) for each in SIMPLE[:4]]
    made += [{"type": "object", "additionalProperties": each, "maxProperties": 3} for each in SIMPLE[:4]]
    made += [{"type": "object", "patternProperties": {"^n_[a-z]{1,4}$": each}, "additionalProperties": False,
              "maxProperties": 2} for each in SIMPLE[:3]]  # fmt: skip
    made += [closed({"a": each, "b": other}) for each in SIMPLE[:4] for other in SIMPLE[4:]]
    return [*made, closed({})]


def _arrays() -> list[Schema]:
    made: list[Schema] = [{"type": "array", "items": each, "minItems": 1, "maxItems": 4} for each in SIMPLE]
    made += [{"type": "array", "items": STRING, "minItems": n, "maxItems": n} for n in (0, 1, 5)]
    made += [{"type": "array", "prefixItems": SIMPLE[:n], "items": False, "minItems": n} for n in (1, 2, 4)]
    made += [
        {"type": "array", "items": {"type": "array", "items": each, "maxItems": 2}, "maxItems": 2}
        for each in SIMPLE[:4]
    ]
    return [*made, {"type": "array", "items": closed({"x": {"type": "integer"}, "y": STRING}), "maxItems": 3}]


def _values() -> list[Schema]:
    made: list[Schema] = [{"const": text} for text in TEXTS]
    made += [{"const": value} for value in (0, -1.5, True, None, [1, "a"], {"k": ["v"]}, 10**18)]
    made += [{"enum": TEXTS[i : i + 4]} for i in range(0, 16, 4)]
    made += [{"enum": [1, "1", None, True, 2.5]}, {"enum": [[], {}, [1]]}, {"enum": list(range(40))}]
    return made


def _numbers() -> list[Schema]:
    bounds = [(0, 10), (-5, 5), (100, 1000), (-1000, -999), (0, 0), (7, 123456), (1, 31)]
    made: list[Schema] = [{"type": "integer", "minimum": low, "maximum": high} for low, high in bounds]
    made += [{"type": "number", "minimum": low, "maximum": high} for low, high in bounds]
    made += [
        {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 9},
        {"type": "integer", "multipleOf": 5, "minimum": 0},
    ]
    made += [{"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, {"type": "number", "minimum": 0}]
    made += [closed({"n": {"type": "integer", "minimum": low, "maximum": high}}) for low, high in bounds]
    return [*made, {"type": "integer", "maximum": -3}, {"type": ["integer", "null"], "minimum": 3}]


def _texts() -> list[Schema]:
    made: list[Schema] = [{"type": "string", "format": each} for each in FORMATS]
    made += [
        {"type": "string", "minLength": low, "maxLength": high}
        for low, high in ((0, 0), (1, 1), (3, 5), (10, 20), (0, 40))
    ]
    made += [{"type": "string", "minLength": 4, "maxLength": 30}, STRING]
    made += [closed({"when": {"type": "string", "format": each}}) for each in FORMATS[:6]]
    patterns = [
        "^[a-z]+$",
        r"^\d{3}-\d{4}$",
        "^(yes|no|maybe)$",
        "^[A-Z][a-z]{0,5}( [A-Z][a-z]{0,5}){0,2}$",
        "^[äöü]{2}$",
        r'^"\\$',
        "^.{3}$",
    ]
    return [*made, *({"type": "string", "pattern": each, "maxLength": 40} for each in patterns)]


def _combinations() -> list[Schema]:
    made: list[Schema] = [{"anyOf": [SIMPLE[i], SIMPLE[(i + 1) % 8]]} for i in range(8)]
    made += [closed({"v": {"anyOf": [each, {"type": "null"}]}}) for each in SIMPLE[:6]]
    made += [
        {"oneOf": [{"type": "integer"}, STRING]},
        {"oneOf": [closed({"k": {"const": 1}}), closed({"k": {"const": "b"}})]},
    ]
    made += [
        {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 9}]},
        {"type": ["string", "boolean"], "maxLength": 5},
    ]
    made += [{"allOf": [{"$ref": "#/$defs/base"}], "$defs": {"base": closed({"id": {"type": "integer"}})}}]
    return made


def _nested() -> list[Schema]:
    made = []
    for depth in range(2, 10):
        schema: Schema = closed({"leaf": SIMPLE[depth % 8]})
        for level in range(depth):
            schema = (
                closed({f"level{level}": schema}) if level % 2 else {"type": "array", "items": schema, "maxItems": 2}
            )
        made.append(schema)
    item = closed({"name": STRING, "price": {"type": "number", "minimum": 0}})
    currency = {"enum": ["EUR", "USD"]}
    receipt = closed({"shop": STRING, "currency": currency, "items": {"type": "array", "items": item, "maxItems": 3}})
    return [*made, receipt, closed({"reasoning": {"type": "string", "maxLength": 60}, "answer": receipt})]


def _recursive() -> list[Schema]:
    link = {"anyOf": [{"$ref": "#"}, {"type": "null"}]}
    made = [closed({"value": {"type": "boolean"}, "next": link})]
    made += [closed({"name": each, "next": link}, ["name"]) for each in SIMPLE[:4]]
    tree = closed(
        {"v": {"enum": [1, 2]}, "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 1}}
    )
    made += [{"$ref": "#/$defs/tree", "$defs": {"tree": tree}}]
    ping, pong = closed({"pong": {"$ref": "#/$defs/pong"}}, []), closed({"ping": {"$ref": "#/$defs/ping"}}, [])
    return [*made, {"$defs": {"ping": ping, "pong": pong}, "$ref": "#/$defs/ping"}]


def _all() -> dict[str, Schema]:
    families = (_objects, _arrays, _values, _numbers, _texts, _combinations, _nested, _recursive)
    numbers = count()
    return {f"{next(numbers)}{family.__name__}": schema for family in families for schema in family()}


SCHEMAS = _all()
