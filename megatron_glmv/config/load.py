"""From Hydra to one frozen `Config`: the only file below the command line that sees OmegaConf.

Defaults live in `schema.py` alone. They are handed to Hydra as the node `schema`, so that it knows every key, and the
files of `conf/` say only what differs.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .build import REQUIRED, build, nearest, option_names, skeleton, unknown_key
from .errors import ConfigError
from .fingerprint import fingerprint, identity, replace_option
from .schema import Config

__all__ = [
    "choices",
    "compose",
    "conf_dir",
    "explain",
    "fingerprint",
    "from_dict",
    "from_omegaconf",
    "groups",
    "identity",
    "register_schema",
    "replace_option",
    "to_json",
    "to_yaml",
]


def conf_dir() -> Path:
    """The directory of config.yaml: inside the package when installed from a wheel, else at the top of the checkout."""
    package = Path(__file__).resolve().parent.parent
    for place in (package / "conf", package.parent / "conf"):
        if (place / "config.yaml").is_file():
            return place
    raise ConfigError("conf", str(package), "the package was installed without its conf directory", "reinstall it")


def groups() -> list[str]:
    """The config groups (folders of conf/). A pipeline is a list of runs, not a part of one."""
    return sorted(place.name for place in conf_dir().iterdir() if place.is_dir() and place.name != "pipeline")


def choices(group: str) -> list[str]:
    """The choices of a group (its files)."""
    return sorted(place.stem for place in (conf_dir() / group).glob("*.yaml"))


def register_schema() -> None:
    """Makes every option and its default known to Hydra under the name `schema`."""
    ConfigStore.instance().store(name="schema", node=skeleton(), provider="megatron_glmv")


def compose(overrides: Sequence[str]) -> Config:
    """The config of `glmv train OVERRIDES`, not yet validated. Raises ConfigError."""
    register_schema()
    running = GlobalHydra.instance().hydra  # a launcher composes inside a Hydra application
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
            return from_omegaconf(hydra_compose("config", list(overrides)))
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise explain(error, overrides) from error
    finally:
        GlobalHydra.instance().hydra = running


def from_omegaconf(node: DictConfig) -> Config:
    """A composed tree as a `Config`. Raises ConfigError (unknown key, wrong type, missing value), or what OmegaConf
    raises for an interpolation that leads nowhere."""
    tree = OmegaConf.to_container(node, resolve=True)
    assert isinstance(tree, dict)
    return build({str(key): value for key, value in tree.items() if key != "hydra"})


def from_dict(tree: Mapping[str, Any]) -> Config:
    """A `Config` from plain values, as `to_json` or a run's config.yaml gives them. Raises ConfigError."""
    return build(tree)


def to_json(config: Config) -> dict[str, Any]:
    """The config as JSON values (tuples as lists)."""
    tree: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return tree


def to_yaml(config: Config) -> str:
    """The resolved config as YAML, in the order of the schema; `from_dict(yaml.safe_load(text))` gives it back."""
    text: str = yaml.safe_dump(to_json(config), sort_keys=False, width=120)
    return text


def explain(error: Exception, overrides: Sequence[str] = ()) -> ConfigError:
    """What Hydra or OmegaConf raised, as the one-line error of the option that caused it. `overrides`: those given."""
    if isinstance(error, ConfigError):
        return error
    text = " ".join(str(error).split())
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        near = nearest(choice, list(error.options))
        fix = f"did you mean {group}={near}?" if near else f"there are: {', '.join(sorted(error.options))}"
        return ConfigError(group, choice, "no such choice", fix)
    if found := re.search(r"You must specify '([^']+)'", text):
        group = found[1]
        return ConfigError(group, REQUIRED, "has to be given", f"one of: {', '.join(choices(group))}")
    if isinstance(error, OmegaConfBaseException):
        option = str(error.full_key)
        return ConfigError(option, _given(option, overrides), str(error.msg).splitlines()[0])
    key = getattr(error.__cause__, "full_key", None)
    if not key and (found := re.search(r"Could not (?:override|append|delete)[^']*'([^'=@]+)", text)):
        key = found[1]
    if key in option_names():
        return ConfigError(str(key), _given(str(key), overrides), "exists already", f"write {key}=... without the +")
    if key:
        given = [name for name in map(_name, overrides) if name == key or name.startswith(f"{key}.")]
        key = given[0] if given else str(key)  # Hydra stops at the first part it doesn't know
        return unknown_key(key, _given(key, overrides), groups())
    named = re.search(r"argument '([^']+)'", text)
    option, _, value = str(getattr(error, "override", named[1] if named else " ".join(overrides))).partition("=")
    return ConfigError(option, value, text.partition(" See https:")[0])


def _name(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _given(key: str, overrides: Sequence[str]) -> str | None:
    """What the command line gave for a key."""
    return next((o.partition("=")[2] for o in overrides if _name(o) == key and "=" in o), None)
