"""The rules of reinforcement learning. No torch."""

from __future__ import annotations

from collections.abc import Iterator

from .problem import Problem
from .schema import Config


def rl_rules(config: Config, world: int | None) -> Iterator[Problem]:
    """Of the stage that uses these options; elsewhere they mean nothing."""
    rl = config.rl
    if config.stage.name != "rlcs":
        return
    if not rl.prompts:
        yield Problem("rl.prompts", "rl.prompts", "", "has to be given: a file of prompts with answers (JSON Lines)")
    if rl.group_size < 2:
        message = "an answer alone has nothing to be compared with"
        yield Problem("rl.group_size", "rl.group_size", rl.group_size, message, (("rl.group_size", [8, 2]),))
    if rl.clip_high < rl.clip_low:
        message = f"is below clip_low = {rl.clip_low}"
        yield Problem("rl.clip_high", "rl.clip_high", rl.clip_high, message, (("rl.clip_high", [rl.clip_low]),))
    if rl.updates > rl.groups:
        message = f"are more than the groups = {rl.groups} they share"
        yield Problem("rl.updates", "rl.updates", rl.updates, message, (("rl.updates", [rl.groups]),))
    if rl.thinking_budget is not None and rl.thinking_budget + 3 > rl.max_new_tokens:
        message = f"leaves no room for an answer in max_new_tokens = {rl.max_new_tokens}"
        repair = ("rl.thinking_budget", [max(1, rl.max_new_tokens // 2), None])
        yield Problem("rl.thinking_budget", "rl.thinking_budget", rl.thinking_budget, message, (repair,))
    if rl.routing_replay and (rl.engine != "inprocess" or config.model.text.moe is None):
        where = "rl.engine = inprocess" if rl.engine != "inprocess" else "a model with experts"
        off = ("rl.routing_replay", [False])
        yield Problem("rl.routing_replay", "rl.routing_replay", True, f"needs {where}", (off,))
    if rl.routing_replay and config.train.moe_router_fusion:
        off = ("train.moe_router_fusion", [False])
        message = "chooses experts in a kernel that can't be told which (rl.routing_replay)"
        yield Problem("rl.routing_fusion", "train.moe_router_fusion", True, message, (off,))
    if rl.judge.votes % 2 == 0:
        odd = ("rl.judge.votes", [rl.judge.votes + 1, rl.judge.votes - 1])
        yield Problem("rl.judge.votes", "rl.judge.votes", rl.judge.votes, "has to be odd, or votes tie", (odd,))
    if rl.judge.url and not rl.judge.model:
        yield Problem(
            "rl.judge.model", "rl.judge.model", "", "has to be given: the name under which rl.judge.url serves it"
        )
    yield from _reward_model(config)
    if rl.staleness > 1:
        message = "is more than one step: rollouts are made for the next iteration alone"
        yield Problem("rl.staleness", "rl.staleness", rl.staleness, message, (("rl.staleness", [1, 0]),))
    if rl.staleness and rl.tis_cap is None:
        message = "needs a cap: rollouts of older weights are weighted by importance"
        yield Problem("rl.tis_cap", "rl.tis_cap", None, message, (("rl.tis_cap", [2.0]), ("rl.staleness", [0])))
    if rl.staleness and rl.expansion.reading == "refill":
        message = "goes on until enough groups are valid, which is not known ahead (rl.staleness = 1)"
        other = ("rl.expansion.reading", ["budget", "rollouts"])
        yield Problem("rl.staleness.refill", "rl.expansion.reading", "refill", message, (other,))
    if rl.engine == "sglang" and rl.server.update != "disk":
        message = "can't be done with rl.engine = sglang: its broadcast is not spoken here"
        by_disk = ("rl.server.update", ["disk"])
        yield Problem("rl.server.update", "rl.server.update", rl.server.update, message, (by_disk,))
    if rl.max_new_tokens >= config.data.pack_tokens:
        message = f"does not fit data.pack_tokens = {config.data.pack_tokens}"
        half = ("rl.max_new_tokens", [config.data.pack_tokens // 2])
        yield Problem("rl.max_new_tokens", "rl.max_new_tokens", rl.max_new_tokens, message, (half,))
    if rl.expansion.cap < 1:
        at_least = ("rl.expansion.cap", [3.0])
        yield Problem("rl.cap", "rl.expansion.cap", rl.expansion.cap, "is a ratio of at least 1", (at_least,))
    edges = rl.curriculum.edges
    if not edges or list(edges) != sorted(set(edges)) or not 0 < edges[0] <= edges[-1] < 1:
        usual = ("rl.curriculum.edges", [(0.0625, 0.3, 0.7, 0.9375)])
        message = "have to ascend between 0 and 1"
        yield Problem("rl.edges", "rl.curriculum.edges", edges, message, (usual,))
    mix = rl.curriculum.mix
    if mix is not None and (not mix or min(mix.values()) < 0 or sum(mix.values()) <= 0):
        message = "needs shares that are not negative, one of them above 0"
        yield Problem("rl.mix", "rl.curriculum.mix", mix, message, (("rl.curriculum.mix", [None]),))


def _reward_model(config: Config) -> Iterator[Problem]:
    scorer = config.rl.reward_model
    if scorer.url and not scorer.model:
        message = "has to be given: the name under which rl.reward_model.url serves it"
        yield Problem("rl.reward_model.model", "rl.reward_model.model", "", message)
    if scorer.api == "sglang" and not scorer.template:
        message = "has to be given for api = sglang, which takes text: a directory with the model's chat template"
        yield Problem("rl.reward_model.template", "rl.reward_model.template", "", message)
    if scorer.template and scorer.api != "sglang":
        message = f"is of no use to api = {scorer.api}, whose server has its own"
        repair = ("rl.reward_model.template", [""])
        yield Problem("rl.reward_model.template", "rl.reward_model.template", scorer.template, message, (repair,))
    if scorer.images and scorer.api in ("score", "sglang"):
        message = f"can't be sent by api = {scorer.api}"
        without = ("rl.reward_model.images", [False])
        yield Problem("rl.reward_model.images", "rl.reward_model.images", True, message, (without,))
