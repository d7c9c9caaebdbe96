"""Every option of `glmv data prepare`, once, as frozen dataclasses; a step has a group of its own.

Values chosen here are no values of the paper (arXiv 2507.01006, section 3.1) unless marked so: it names the steps and
one threshold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from megatron_glmv.config.build import build_as
from megatron_glmv.config.errors import ConfigError

EVERY = "default"
"""Key of the rules for domains that have none of their own."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Heuristics of one domain. Lengths count words; a Chinese character counts as one."""

    min_side: int = 28
    """Pixels of the shorter side; 28 is one language token."""
    max_aspect: float = 10.0
    """Longer side over shorter side."""
    max_pixels: int = 89_478_485
    """Width times height; Pillow's own limit for a warning."""
    min_contrast: float = 2.0
    """Standard deviation of the grey levels (0-255): below it a picture is one colour."""
    max_seconds: float = 7200.0
    """Of a video."""
    min_words: int = 1
    min_chars: int = 1
    max_chars: int = 2_000_000
    max_repetition: float = 0.3
    """Share of the words inside five-word sequences that occurred before; judged from `REPETITION_WORDS` words on."""
    max_run: int = 16
    """The same letter or digit in a row."""


CAPTION = Rules(min_side=200, max_aspect=3.0, min_words=3, min_chars=6, max_chars=4000)
"""DataComp's basic filter (arXiv 2304.14108): over 2 words and 5 characters, sides of 200 and an aspect below 3."""


@dataclass(frozen=True, kw_only=True)
class LanguageOptions:
    """Which languages stay. Scripts are always checked, words where py3langid is installed."""

    allowed: tuple[str, ...] = ("en", "zh")
    """ISO 639-1; empty: all."""
    max_foreign: float = 0.3
    """Share of letters outside the scripts of the allowed languages."""
    min_words: int = 5
    """Shorter Latin texts are not judged by their words: no classifier knows the language of `Red rocket`."""
    confidence: float = 0.8
    """Probability from which a language that is not allowed removes a sample."""


@dataclass(frozen=True, kw_only=True)
class ContaminationOptions:
    """Against which evaluation files, and what counts as a match."""

    files: tuple[str, ...] = ()
    """JSONL: conversations, or plain fields with texts; media relative to the file."""
    ngram: int = 13
    """Words of a match (GPT-3's choice, arXiv 2005.14165, appendix C)."""
    min_ngram: int = 8
    """A shorter evaluation text is matched as a whole from this length on, and ignored below it."""
    max_items: int = 10
    """A sequence in more evaluation items than this is the benchmark's template, and no match."""
    distance: int = 16
    """Bits of 256 by which the hash of a picture may differ."""


@dataclass(frozen=True, kw_only=True)
class ClipOptions:
    """Agreement of picture and caption, in the caption domains."""

    model: str = ""
    """Local directory of a CLIP or SigLIP model in safetensors; empty: no such filter."""
    min_score: float = 0.3
    """Cosine; the paper keeps CLIP-Score > 0.3. SigLIP's scores are lower."""
    batch: int = 32
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class DuplicateOptions:
    """Near-duplicates over the whole corpus."""

    enabled: bool = True
    distance: int = 24
    """Bits of 256 by which hashes may differ, mean over the frames of a video. Recompressed and resized photographs
    differ by 0-14, different ones by 75 and more."""
    recall: float = 0.999
    """Chance at least that two samples just within `distance` are compared."""


@dataclass(frozen=True, kw_only=True)
class BalanceOptions:
    """Concept-balanced resampling as MetaCLIP (arXiv 2309.16671, algorithm 1), in the caption domains."""

    concepts: str = ""
    """Text file, a concept a line; empty: the lists `concepts` of the conversations, where they have them."""
    cap: int = 0
    """Samples of a concept from which on it is thinned (MetaCLIP: 20,000 at 400M pairs); 0: no resampling."""
    temperature: float = 1.0
    """A concept seen n times keeps a sample with (cap / n)^temperature: 1 flattens it to the cap, 0 keeps all."""
    unmatched: bool = True
    """Keep captions that name no concept; MetaCLIP drops them."""


@dataclass(frozen=True, kw_only=True)
class RecaptionOptions:
    """Captions written anew by a model behind an OpenAI-compatible endpoint."""

    endpoint: str = ""
    """Base URL, like http://127.0.0.1:8000/v1; empty: captions stay as they are."""
    model: str = "recaption"
    ratio: float = 0.5
    """Share of captions that is replaced (the paper says a predetermined ratio and not which)."""
    prompt: str = (
        "Describe this image factually and in detail. The caption it came with may name things that cannot be seen, "
        "or be wrong; keep what is right. Caption: {caption}"
    )
    """`{caption}` stands for the original."""
    max_tokens: int = 512
    timeout: float = 60.0
    """Seconds for one answer."""
    retries: int = 4
    """Further attempts after a time-out, a broken connection, status 429 or 5xx."""
    parallel: int = 8
    """Requests of one shard in flight."""
    max_failed: float = 0.1
    """Share of a shard's requests that may fail for good (the original stays); over it the step ends with an error."""
    key_variable: str = ""
    """Environment variable with the endpoint's key."""


def _rules() -> dict[str, Rules]:
    return {EVERY: Rules(), "caption": CAPTION}


@dataclass(frozen=True, kw_only=True)
class Options:
    seed: int = 0
    captions: tuple[str, ...] = ("caption",)
    """Domains whose samples are a picture and its caption: these alone go through CLIP, balance and recaption, and one
    picture is enough to make them duplicates. Elsewhere many questions may share a picture."""
    rules: dict[str, Rules] = field(default_factory=_rules)
    """By domain; `default` for the others."""
    language: LanguageOptions = LanguageOptions()
    contamination: ContaminationOptions = ContaminationOptions()
    clip: ClipOptions = ClipOptions()
    duplicates: DuplicateOptions = DuplicateOptions()
    balance: BalanceOptions = BalanceOptions()
    recaption: RecaptionOptions = RecaptionOptions()

    def rules_of(self, domain: str) -> Rules:
        return self.rules.get(domain) or self.rules.get(EVERY) or Rules()


def load(text: str, overrides: Sequence[str] = ()) -> Options:
    """Options from YAML and `group.name=value` overrides. Raises ConfigError."""
    try:
        tree = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ConfigError("--config", "", f"is not YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError("--config", tree, "expected groups of options")
    for override in overrides:
        name, equals, value = override.partition("=")
        if not equals:
            raise ConfigError("override", override, "is not of the form group.name=value")
        _put(tree, name.split("."), yaml.safe_load(value), name)
    _defaults_of_rules(tree)
    options: Options = build_as(Options, tree)
    _check(options)
    return options


def _put(tree: dict[str, Any], path: Sequence[str], value: object, name: str) -> None:
    for part in path[:-1]:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise ConfigError(name, value, f"{part} is not a group of options")
    tree[path[-1]] = value


def _defaults_of_rules(tree: dict[str, Any]) -> None:
    """A domain's rules change what `default` says, and the built-in ones of captions stay where nothing is said."""
    given = tree.get("rules")
    if not isinstance(given, Mapping):
        return
    base = given.get(EVERY) or {}
    built_in: dict[str, dict[str, Any]] = {name: vars(rules) for name, rules in _rules().items()}
    merged = {EVERY: built_in[EVERY] | base, "caption": built_in["caption"]}
    for name, rules in given.items():
        if name != EVERY:
            merged[name] = (built_in.get(name) or merged[EVERY]) | (rules or {})
    tree["rules"] = merged


def _check(options: Options) -> None:
    for name, value in (
        ("recaption.ratio", options.recaption.ratio),
        ("recaption.max_failed", options.recaption.max_failed),
        ("balance.temperature", options.balance.temperature),
        ("language.confidence", options.language.confidence),
    ):
        if not 0 <= value <= 1:
            raise ConfigError(name, value, "lies outside 0 .. 1")
    if not 0 < options.duplicates.recall < 1:
        raise ConfigError("duplicates.recall", options.duplicates.recall, "lies outside 0 .. 1", "0.999")
    for name, bits in (
        ("duplicates.distance", options.duplicates.distance),
        ("contamination.distance", options.contamination.distance),
    ):
        if not 0 <= bits <= 64:
            raise ConfigError(name, bits, "lies outside 0 .. 64 of 256 bits: different pictures begin at about 75")
    if not 1 <= options.contamination.min_ngram <= options.contamination.ngram:
        raise ConfigError("contamination.min_ngram", options.contamination.min_ngram, "is over contamination.ngram")
    if options.recaption.endpoint and not options.recaption.endpoint.startswith(("http://", "https://")):
        raise ConfigError("recaption.endpoint", options.recaption.endpoint, "is no http or https address")
    if min(options.recaption.parallel, options.clip.batch) < 1:
        raise ConfigError("recaption.parallel", options.recaption.parallel, "and clip.batch are 1 at least")
