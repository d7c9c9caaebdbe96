"""Plain values to the dataclasses of `schema.py`, strictly: an unknown key or a wrong type is a ConfigError."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from .errors import ConfigError
from .schema import Config, ModelConfig

REQUIRED = "???"
"""Hydra's word for a value that has to be given."""
NO_SUCH = "no such option"


def build(tree: Mapping[str, Any]) -> Config:
    """A `Config` from nested plain values. Raises ConfigError."""
    config = _build(Config, tree, "")
    assert isinstance(config, Config)
    if config.data.template == "auto":
        config = replace(config, data=replace(config.data, template=template_of(config.model)))
    return config


def template_of(model: ModelConfig) -> str:
    """The chat template a model was released with. Of the two only GLM-4.1V has norms behind attention and MLP."""
    return "glm41v" if model.text.sandwich_norm else "glm45v"


def build_as(kind: type[Any], tree: Mapping[str, Any]) -> Any:
    """An object of another dataclass than `Config`, by the same rules. Raises ConfigError."""
    try:
        return _build(kind, tree, "")
    except ConfigError as error:
        if error.message != NO_SUCH:
            raise
        near = nearest(error.option, list(_option_names(kind, "")))
        fix = f"did you mean {near}?" if near else f"there are: {', '.join(f.name for f in dataclasses.fields(kind))}"
        raise ConfigError(error.option, error.value, NO_SUCH, fix) from error


def skeleton() -> dict[str, Any]:
    """Every option with its default as plain values, REQUIRED where there is none."""
    return _skeleton(Config)


def option_names() -> list[str]:
    """Every dotted name that exists, groups included, also those of an optional group such as model.text.moe."""
    return list(_option_names(Config, ""))


def nearest(name: str, names: list[str]) -> str | None:
    """The name most likely meant: close in spelling, else with the same last part."""
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    near += [other for other in names if other.rpartition(".")[2] == name.rpartition(".")[2]]
    near += difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return near[0] if near else None


def unknown_key(key: str, value: object = None, groups: Sequence[str] = ()) -> ConfigError:
    """The error for a key that does not exist, with the nearest option or config group that does."""
    near = nearest(key, [*option_names(), *groups])
    fix = f"did you mean {near}?" if near else f"there are: {', '.join(f.name for f in dataclasses.fields(Config))}"
    return ConfigError(key, value, NO_SUCH, fix)


@cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _fields(kind: type) -> Iterator[tuple[dataclasses.Field[Any], Any, Any]]:
    """(field, its type without None, its default or REQUIRED) of a dataclass."""
    for field in dataclasses.fields(kind):
        default: Any = REQUIRED
        if field.default is not dataclasses.MISSING:
            default = field.default
        elif field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        yield field, _without_none(_hints(kind)[field.name]), default


def _without_none(hint: Any) -> Any:
    if typing.get_origin(hint) is types.UnionType:
        (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
    return hint


def _optional(hint: Any) -> bool:
    return type(None) in typing.get_args(hint)


def _skeleton(kind: type) -> dict[str, Any]:
    """The defaults of a dataclass as plain values, REQUIRED where there is none."""
    tree: dict[str, Any] = {}
    for field, hint, default in _fields(kind):
        if dataclasses.is_dataclass(hint) and not _optional(_hints(kind)[field.name]):
            tree[field.name] = _skeleton(typing.cast(type, hint))
        else:
            tree[field.name] = list(default) if isinstance(default, tuple) else default
    return tree


def _option_names(kind: type, prefix: str) -> Iterator[str]:
    for field, hint, _ in _fields(kind):
        name = f"{prefix}{field.name}"
        yield name
        if dataclasses.is_dataclass(hint):
            yield from _option_names(typing.cast(type, hint), f"{name}.")


def _build(kind: type, tree: object, path: str) -> Any:
    if not isinstance(tree, Mapping):
        raise ConfigError(path or "config", tree, "expected a group of options")
    known = {field.name for field in dataclasses.fields(kind)}
    for key in tree:
        if key not in known:
            raise unknown_key(f"{path}.{key}".lstrip("."), tree[key])
    values: dict[str, Any] = {}
    for field, _, default in _fields(kind):
        option = f"{path}.{field.name}".lstrip(".")
        value = tree.get(field.name, default)
        if isinstance(value, str) and value == REQUIRED:
            raise ConfigError(option, value, "has to be given", f"add {option}=...")
        if value is not default or default is None:
            value = _convert(_hints(kind)[field.name], value, option)
        values[field.name] = value
    return kind(**values)


def _convert(hint: Any, value: Any, option: str) -> Any:
    """`value` as the annotated type. Only these conversions are made: int to float, list to tuple, keys to int."""
    if value is None and _optional(hint):
        return None
    kind = _without_none(hint)
    if dataclasses.is_dataclass(kind):
        return _build(typing.cast(type, kind), value, option)
    if typing.get_origin(kind) is tuple and isinstance(value, (list, tuple)):
        parts = typing.get_args(kind)
        if parts[-1] is Ellipsis:
            parts = (parts[0],) * len(value)
        if len(parts) != len(value):
            raise ConfigError(option, value, f"expected {len(parts)} values, got {len(value)}")
        return tuple(
            _convert(part, item, f"{option}[{i}]") for i, (part, item) in enumerate(zip(parts, value, strict=True))
        )
    if typing.get_origin(kind) is dict and isinstance(value, Mapping):
        key_kind, value_kind = typing.get_args(kind)
        keys = {key: _key(key_kind, key, option) for key in value}
        return {keys[key]: _convert(value_kind, item, f"{option}.{key}") for key, item in value.items()}
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is kind:
        return value
    raise ConfigError(option, value, f"expected {_type_name(hint)}, got {type(value).__name__}", _type_fix(kind, value))


def _key(kind: Any, key: Any, option: str) -> Any:
    """A key of a mapping; JSON and the command line may have made text of an integer."""
    if kind is int and isinstance(key, str) and key.isdecimal():
        return int(key)
    if type(key) is not kind:
        raise ConfigError(option, key, f"expected keys that are {_type_name(kind)}")
    return key


def _type_name(hint: Any) -> str:
    kind = _without_none(hint)
    if typing.get_origin(kind) is tuple:
        name = "a list like [1,2]"
    elif typing.get_origin(kind) is dict:
        name = "a mapping like {a:1,b:2}"
    else:
        name = {int: "an integer", float: "a number", bool: "true or false", str: "text"}.get(
            kind, "a group of options"
        )
    return f"{name} or null" if _optional(hint) else name


def _type_fix(kind: Any, value: Any) -> str:
    if kind is str and isinstance(value, (int, float, bool)):
        return f"put it in quotes: \"'{value}'\""
    if kind is int and isinstance(value, float) and abs(value) < 1e15:
        return f"nearest: {round(value)}"
    return ""
