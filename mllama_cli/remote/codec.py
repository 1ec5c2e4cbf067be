"""Plain data as JSON and back: dataclasses become objects, bytes base64, and what comes back is checked."""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin

from mllama_cli.core.conversation import ImagePart
from mllama_cli.core.errors import MllamaError, UsageError
from mllama_cli.core.text import shown

T = TypeVar("T")


def to_json(value: Any) -> Any:
    """Return plain data as ``from_json`` reads it. A decoded image is written as the file that it was read from."""
    if is_dataclass(value) and not isinstance(value, type):
        kind = ImagePart if isinstance(value, ImagePart) else type(value)
        return {each.name: to_json(getattr(value, each.name)) for each in fields(kind)}
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, list | tuple):
        return [to_json(each) for each in value]
    if isinstance(value, Mapping):
        return {str(key): to_json(each) for key, each in value.items()}
    return value


def from_json(kind: type[T], data: Any, where: str, error: type[MllamaError] = UsageError) -> T:
    """Return the object of a dataclass that ``to_json`` wrote. Raise ``error``, starting with ``where``, for others."""
    try:
        read: T = _read(kind, data)
    except (TypeError, ValueError) as problem:
        raise error(f"{where}: {problem}", "Both sides must be of the same version of mllama.") from problem
    return read


def _read(hint: Any, value: Any) -> Any:
    """Return a value of type ``hint``. Raise TypeError or ValueError."""
    if is_dataclass(hint):
        return _read_object(hint, value)
    if hint is bytes and isinstance(value, str):
        try:
            return base64.b64decode(value, validate=True)
        except binascii.Error as problem:
            raise ValueError("base64 is damaged") from problem
    if hint is float and type(value) is int:
        return float(value)
    if isinstance(hint, type) and get_origin(hint) is None and type(value) is hint:
        return value
    arguments = get_args(hint)
    match get_origin(hint):
        case origin if origin is Literal and isinstance(value, str) and value in arguments:
            return value
        case origin if origin is UnionType:
            return _read(_member(arguments, value), value)
        case origin if origin is tuple and isinstance(value, list):
            if arguments[1:] == (...,):
                return tuple(_read(arguments[0], each) for each in value)
            return tuple(_read(each, item) for each, item in zip(arguments, value, strict=True))
        case origin if origin is Mapping and isinstance(value, dict):
            return {arguments[0](key): _read(arguments[1], each) for key, each in value.items()}
    raise TypeError(f"{shown(value)} is not expected")


def _read_object(kind: Any, value: Any) -> Any:
    known = _fields(kind)
    if not isinstance(value, dict) or not value.keys() <= known.keys():
        raise TypeError(f"{shown(value)} is not expected")
    return kind(**{name: _read(known[name], each) for name, each in value.items()})


def _member(members: tuple[Any, ...], value: Any) -> Any:
    """Return the member of a union that a value is of: of several dataclasses that which has its keys."""
    if value is None and NoneType in members:
        return NoneType
    others = [each for each in members if each is not NoneType]
    if isinstance(value, dict):
        return next((each for each in others if _required(each) <= value.keys()), others[0])
    return next((each for each in others if each is type(value)), others[0])


@cache
def _fields(kind: Any) -> dict[str, Any]:
    return {each.name: each.type for each in fields(kind)}


@cache
def _required(kind: Any) -> frozenset[str]:
    missing = [each for each in fields(kind) if each.default is MISSING] if is_dataclass(kind) else []
    return frozenset(each.name for each in missing if each.default_factory is MISSING)
