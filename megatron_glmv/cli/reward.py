"""`glmv reward`: the verifiers over a file of responses, without a model and without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from megatron_glmv.config.errors import ConfigError


def reward(
    file: Annotated[
        Path, typer.Argument(help="One JSON object a line: domain, response, answer, and what else counts.")
    ],
    out: Annotated[Path | None, typer.Option(help="Judgements, one a line; default: stdout.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that parse and execute.")] = 2,
    seconds: Annotated[float | None, typer.Option(help="Limit of one call instead of each verifier's own.")] = None,
    style: Annotated[bool, typer.Option(help="Language mixing and repetition cost the reward.")] = True,
    thinking_opened: Annotated[
        bool, typer.Option("--thinking-opened", help="Prompts ended with <think>: responses begin inside it.")
    ] = False,
    browser: Annotated[str, typer.Option(help="Shows pages (ui_to_code); default: chromium on PATH.")] = "",
    judge_url: Annotated[str, typer.Option(help="An OpenAI-compatible endpoint (http://HOST:PORT/v1).")] = "",
    judge_model: Annotated[str, typer.Option(help="The model there that judges what rules cannot.")] = "",
    judge_votes: Annotated[int, typer.Option(help="Votes on one answer; odd.")] = 3,
    judge_key_env: Annotated[str, typer.Option(help="Environment variable that holds the endpoint's key.")] = "",
    judge_cache: Annotated[Path | None, typer.Option(help="File that keeps votes.")] = None,
    reward_model_url: Annotated[str, typer.Option(help="A server of a scalar reward model (http://HOST:PORT).")] = "",
    reward_model_name: Annotated[str, typer.Option(help="The model there that scores open-ended answers.")] = "",
    reward_model_api: Annotated[str, typer.Option(help="classify, pooling, score (vLLM) or sglang.")] = "classify",
    reward_model_template: Annotated[str, typer.Option(help="Directory of its chat template (sglang).")] = "",
    reward_model_key_env: Annotated[str, typer.Option(help="Environment variable that holds its key.")] = "",
    reward_model_cache: Annotated[Path | None, typer.Option(help="File that keeps its scalars.")] = None,
) -> None:
    """Judges responses: {reward, extracted, verifier, reason, seconds} a line. docs/rewards.md lists the domains."""
    from megatron_glmv.config.rl import RewardModelConfig
    from megatron_glmv.rl.rewards.endpoint import Endpoint
    from megatron_glmv.rl.rewards.file import main
    from megatron_glmv.rl.rewards.judge_model import JudgeModel
    from megatron_glmv.rl.rewards.reward_model import RewardModel
    from megatron_glmv.rl.rewards.types import JudgeOptions

    if bool(judge_url) != bool(judge_model):
        raise ConfigError("--judge-url", judge_url, "goes with --judge-model", "give both, or neither")
    model = None
    if judge_url:
        endpoint = Endpoint(judge_url, judge_model, judge_key_env)
        model = JudgeModel(endpoint, votes=judge_votes, cache=str(judge_cache or ""))
    if bool(reward_model_url) != bool(reward_model_name):
        raise ConfigError("--reward-model-url", reward_model_url, "goes with --reward-model-name", "give both")
    scorer = None
    if reward_model_url:
        endpoint = Endpoint(reward_model_url, reward_model_name, reward_model_key_env, "reward_model")
        given = RewardModelConfig(api=reward_model_api, template=reward_model_template)
        scorer = RewardModel(endpoint, given, str(reward_model_cache or ""))
    options = JudgeOptions(
        workers=workers, seconds=seconds, style=style, thinking_opened=thinking_opened, browser=browser
    )
    main(file, out, options, model, scorer)
