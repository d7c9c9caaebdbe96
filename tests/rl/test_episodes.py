"""Rollouts of several turns: what was sampled, under what, and that training sees exactly that.

Derivation. Token j of a turn is a sample given everything in front of it: the turns before as they were generated, the
environment's turns and pictures, inserted thinking. So (1) its log-probability is that of one pass over the whole
conversation as training packs it (several in one pack), and loss weights are above 0 on sampled tokens alone and sum
to 1; (2) a conversation whose answers are as the template writes them is token for token, position for position what
the data path makes of the same messages; (3) each rank's share or another batch gives the same episodes; (4) what is
replayed is what was seen, and anything else is refused. Bound of (1): sums in another order, 1e-5 in fp32; the test
of force answering has 2e-5. Episodes are of a world that answers any text with pictures (helpers/mirror.py). Not
covered: that it learns (docs/environments.md), real servers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.answering import VOCAB, answering_config, make_answering_run
from helpers.mirror import MIRROR_BOOT

from megatron_glmv.config.rl import RLConfig, ServerConfig
from megatron_glmv.data.cost import Cost
from megatron_glmv.data.errors import SampleError
from megatron_glmv.data.sample import lay_out_prompt
from megatron_glmv.data.template import GLM41V, GLM45V
from megatron_glmv.data.types import IMAGE, Json
from megatron_glmv.inference.completion import LENGTH
from megatron_glmv.inference.load import Loaded, load_for_inference
from megatron_glmv.inference.prompts import Prompt, PromptBuilder
from megatron_glmv.model.replay import choosers
from megatron_glmv.rl.ahead import _group
from megatron_glmv.rl.batch import Answer, AnswerPacks, lay_out_packs
from megatron_glmv.rl.environments.referee import Referee
from megatron_glmv.rl.environments.types import Episode
from megatron_glmv.rl.episodes import Episodes, Played
from megatron_glmv.rl.group import Group
from megatron_glmv.rl.observe import describe
from megatron_glmv.rl.rollout.contract import ForceAnswer, Request, Rollout, RolloutSource
from megatron_glmv.rl.rollout.in_process import RolloutEngine
from megatron_glmv.rl.rollout.remote import Question, RemoteEngine, Said
from megatron_glmv.rl.rollout.routes_text import unpacked
from megatron_glmv.rl.rollout.server import Server
from megatron_glmv.rl.trajectory import Trajectory, joined
from megatron_glmv.train.step import model_inputs

EACH, MOST, BUDGET = 4, 7, 512
EPISODES = [Episode("mirror", index=n, options={"steps": 3}) for n in range(4)]
BOUND = 2e-5
COST = Cost.of(answering_config(Path()).model)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    with load_for_inference(make_answering_run(tmp_path_factory.mktemp("answering"))) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def engine(loaded: Loaded) -> RolloutEngine:
    """Stops at every fourth token: a random model seldom says the one that ends a turn. Records experts."""
    old = loaded.engine
    made = RolloutEngine(old.model, old.tokenizer, old.features.files, frozenset(), old.device)
    made.stop_ids = frozenset({*range(0, VOCAB, 4), old.tokenizer.special("<|user|>")})
    made.record_routes()
    return made


@pytest.fixture(scope="module")
def referee() -> Iterator[Referee]:
    made = Referee(workers=1, boot=MIRROR_BOOT)
    yield made
    made.close()


def driver(
    engine: RolloutSource, loaded: Loaded, referee: Referee, most: int = BUDGET, budget: int | None = None
) -> Episodes:
    config = RLConfig(max_new_tokens=MOST, thinking=budget is not None, thinking_budget=budget)
    force = None if budget is None else ForceAnswer.of(engine.tokenizer, GLM45V, budget)
    return Episodes(config, engine, loaded.prompts, referee, most, force)


def play(
    episodes: Episodes, which: Sequence[int] = (0, 1, 2, 3), seed: int = 3, greedy: bool = False
) -> dict[int, Played]:
    if isinstance(episodes.engine, RolloutEngine):
        episodes.engine.record_routes()
    starts = episodes.referee.reset([EPISODES[i] for i in which])
    asked = {i: (f"e{i}", start, episodes.first(f"e{i}", start)) for i, start in zip(which, starts, strict=True)}
    played = episodes.play(asked, {i: range(EACH * i, EACH * (i + 1)) for i in which}, seed, greedy=greedy)
    return {i: one for i, one in played.items() if isinstance(one, Played)}


@pytest.fixture(scope="module")
def played(engine: RolloutEngine, loaded: Loaded, referee: Referee) -> dict[int, Played]:
    return play(driver(engine, loaded, referee))


def groups_of(played: dict[int, Played]) -> list[Group]:
    made = []
    for i, one in played.items():
        grids = [medium.plan.grid for medium in one.prompt.media]
        sizes = len(one.prompt), sum(g.patches for g in grids), sum(g.t for g in grids)
        made.append(Group(f"e{i}", "d", "mirror", *sizes, one.rollouts, one.rewards, ("mirror",) * EACH, 0.0))
    return made


def turns_of(episodes: Episodes, played: dict[int, Played]) -> dict[str, tuple[Prompt, ...]]:
    rollouts = [(f"e{i}", EPISODES[i], rollout) for i, one in played.items() for rollout in one.rollouts]
    turns = episodes.turns(rollouts)
    return {f"{id}#{rollout.number}": turn for (id, _, rollout), turn in zip(rollouts, turns, strict=True)}


def test_episodes_have_turns_pictures_and_one_reward_each(played: dict[int, Played]) -> None:
    rollouts = [rollout for one in played.values() for rollout in one.rollouts]
    assert len(rollouts) == 4 * EACH and {r.number for r in rollouts} == set(range(4 * EACH))
    assert {len(r.responses) for r in rollouts} >= {3, 4}, "some end in time, some use a step up for nothing"
    assert sum(r.pictures for r in rollouts) > 10 and len({r.media for r in rollouts}) > 8
    for one in rollouts:
        assert len(one.given) == len(one.responses) - 1 or one.finish == LENGTH
        assert len(one.sampled) == len(one.token_ids) == len(one.logprobs) and not one.forced and not one.error
        inside = {i for first, end in one.given for i in range(first, end)}
        assert [not s for s in one.sampled] == [i in inside for i in range(len(one.sampled))]
        assert one.patches == 4 * sum(one.token_ids[i] == rollouts_placeholder(played) for i in inside)
    rewards = [reward for one in played.values() for reward in one.rewards]
    assert set(rewards) == {0.0, 1.0}
    seen = describe(groups_of(played), 0)
    assert seen["turns"] > 2 and seen["environment_errors"] == 0 and seen["answer_tokens"] <= MOST * seen["turns"]


def rollouts_placeholder(played: dict[int, Played]) -> int:
    prompt = next(one.prompt for one in played.values() if len(one.prompt.visual_positions))
    return int(prompt.input_ids[prompt.visual_positions[0]])


def trained_pass(
    loaded: Loaded, episodes: Episodes, played: dict[int, Played]
) -> Iterator[tuple[Answer, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """(answer, log-probabilities of its tokens, loss weights, experts [T, N, K]) of one pass over packs as training
    makes them."""
    answers = [Answer(group, rollout, 1.0) for group in groups_of(played) for rollout in group.rollouts]
    batch = lay_out_packs(answers, "sample", BUDGET, 1, 1, COST)
    files = loaded.engine.features.files
    packs = AnswerPacks(files, 0, BUDGET, "sample")
    prompts = {f"e{i}": one.prompt for i, one in played.items()}
    packs.make(batch, 0, prompts, turns_of(episodes, played))
    model, by_key = loaded.engine.model, {answer.key: answer for answer in batch.answers}
    assert len(batch.packs) < len(answers), "several in a pack"
    for pack in packs.next_step():
        inputs = model_inputs(pack, torch.device("cpu"), model.vision)
        for chooser in choosers(model):
            chooser.recorded = []
        with torch.no_grad():
            losses = model(inputs.pop("input_ids"), inputs.pop("position_ids"), **inputs)[0]
        experts = torch.stack([chooser.recorded[0] for chooser in choosers(model)], dim=1)  # type: ignore[index]
        for key, start in zip(pack.sample_ids, pack.cu_seqlens.tolist(), strict=False):
            answer = by_key[key]
            first = start + answer.group.tokens - 1
            span = slice(first, first + len(answer.rollout.token_ids))
            assert pack.labels[span].tolist() == list(answer.rollout.token_ids) and start % 16 == 0
            yield answer, -losses[span], pack.loss_weights[span], experts[start : start + answer.length]


def test_training_sees_what_was_sampled(
    engine: RolloutEngine, loaded: Loaded, referee: Referee, played: dict[int, Played]
) -> None:
    """Log-probabilities, masks and experts of every token of every turn."""
    episodes, seen, worst = driver(engine, loaded, referee), 0, 0.0
    for answer, logprobs, weights, experts in trained_pass(loaded, episodes, played):
        sampled = torch.from_numpy(answer.trained)
        assert ((weights > 0) == sampled).all() and float(weights.sum()) == pytest.approx(1.0)
        difference = (logprobs - torch.tensor(answer.rollout.logprobs)).abs()[sampled]
        worst = max(worst, float(difference.max()))
        routes = unpacked(answer.rollout.routes, *experts.shape[1:])
        assert routes.shape == experts.shape and (routes == experts.numpy()).all(), answer.key
        seen += 1
    assert seen == 4 * EACH and worst < BOUND, worst


def test_the_same_episodes_in_another_batch_and_none_with_another_seed(
    engine: RolloutEngine, loaded: Loaded, referee: Referee, played: dict[int, Played]
) -> None:
    alone = play(driver(engine, loaded, referee), [2])
    assert [r.token_ids for r in alone[2].rollouts] == [r.token_ids for r in played[2].rollouts]
    assert alone[2].rewards == played[2].rewards
    other = play(driver(engine, loaded, referee), [2], seed=4)
    assert [r.token_ids for r in other[2].rollouts] != [r.token_ids for r in played[2].rollouts]
    long = next(r for r in played[2].rollouts if len(r.responses) > 2)
    starts = [0, *(end for _, end in long.given)]
    assert len({long.token_ids[start : start + 2] for start in starts}) > 1, "a turn's draws are its own"


class Local:
    """A server's dialect that asks our own model: of the question it takes ids, and the media with their pixels."""

    def __init__(self, engine: RolloutEngine) -> None:
        self.engine, self.pictures = engine, 0

    def ask(self, server: Server, question: Question) -> list[Said]:
        media = question.prompt.media
        decoded = self.engine.features.files.decode(list(media))
        for medium, pixels in zip(media, decoded, strict=True):
            assert isinstance(pixels, torch.Tensor) and torch.equal(question.pixels[medium.key], pixels)
        self.pictures = max(self.pictures, len(media))
        request = Request("q", question.prompt, tuple(range(question.count)))
        made = self.engine.roll([request], question.most, question.seed, greedy=question.greedy)
        return [Said(r.token_ids, r.logprobs, r.finish) for r in made]


def test_servers_are_asked_with_the_whole_conversation(engine: RolloutEngine, loaded: Loaded, referee: Referee) -> None:
    """Greedy, so that draws don't matter: the same episodes as in process, all pictures so far in each question."""
    local, config = Local(engine), ServerConfig(in_flight=1)
    files = engine.features.files
    remote = RemoteEngine(local, [Server("http://one:1", config)], engine.tokenizer, files, (), config, 0)
    remote.stop_ids = tuple(engine.stop_ids)
    ours = play(driver(engine, loaded, referee), greedy=True)
    theirs = play(driver(remote, loaded, referee), greedy=True)
    for i in ours:
        assert [r.token_ids for r in theirs[i].rollouts] == [r.token_ids for r in ours[i].rollouts]
        assert [r.media for r in theirs[i].rollouts] == [r.media for r in ours[i].rollouts]
        assert theirs[i].rewards == ours[i].rewards
        for a, b in zip(ours[i].rollouts, theirs[i].rollouts, strict=True):
            assert a.logprobs == pytest.approx(b.logprobs, abs=BOUND)
    assert local.pictures == max(len(r.media) for one in ours.values() for r in one.rollouts) > 2


def test_the_thinking_budget_is_that_of_each_turn(engine: RolloutEngine, loaded: Loaded, referee: Referee) -> None:
    """Inserted in every turn that thinks too long, counted as forced, without loss; experts and probabilities hold."""
    episodes = driver(engine, loaded, referee, budget=2)
    played = play(episodes)
    end = engine.tokenizer.special("</think>")
    forced = [r for one in played.values() for r in one.rollouts if r.forced]
    assert len(forced) > 4 and max(r.token_ids.count(end) for r in forced) > 1, "in more than one turn"
    for answer, logprobs, weights, _ in trained_pass(loaded, episodes, played):
        of_model = [i for i in range(len(answer.rollout.sampled)) if weights[i] > 0]
        inserted = [i for i, t in enumerate(answer.rollout.token_ids) if t == end and not answer.rollout.sampled[i]]
        assert not set(inserted) & set(of_model)
        got = torch.tensor(answer.rollout.logprobs)
        assert (logprobs - got)[of_model].abs().max() < BOUND


@pytest.mark.parametrize("template", [GLM45V, GLM41V])
def test_a_conversation_is_the_one_that_the_template_writes(
    engine: RolloutEngine, loaded: Loaded, referee: Referee, template: str
) -> None:
    """Answers as the template has them, put into the model's mouth, ended by the next role's token."""
    files = loaded.engine.features.files
    old, files.data = files.data, replace(files.data, template=template)
    try:
        episodes = Episodes(RLConfig(), engine, PromptBuilder(engine.tokenizer, files), referee, 4096, None)
        special, ends = engine.tokenizer.special, {GLM45V: ["<|user|>"], GLM41V: ["</answer>"]}[template]
        (moment,) = referee.reset(EPISODES[1:2])
        trajectory = Trajectory(episodes.first("e1", moment), 0)
        messages: list[Json] = [message_of(moment.observation.text, len(moment.observation.images))]
        for text in ("one", "two", "Which"):
            ids = (*engine.tokenizer.encode(text), *map(special, ends))
            trajectory.hear(Rollout("e1", 0, ids, (-1.0,) * len(ids), (True,) * len(ids), text, "stop"))
            (moment,) = referee.step([(moment, text)])
            turn = episodes._turn("e1", moment.observation, ids[-1])
            trajectory.tell(turn)
            messages += [{"role": "assistant", "content": text}]
            messages += [message_of(moment.observation.text, len(moment.observation.images))]
        plans = [medium.plan for medium in trajectory.prompt.media]
        whole = lay_out_prompt({"messages": messages}, plans, engine.tokenizer, template, files.vision.merge)
        assert trajectory.prompt.input_ids.tolist() == whole.input_ids.tolist()
        assert (trajectory.prompt.position_ids.numpy() == whole.position_ids).all()
        assert (trajectory.prompt.visual_positions.numpy() == whole.visual_positions).all() and len(plans) > 1
    finally:
        files.data = old


def message_of(text: str, pictures: int) -> Json:
    return {"role": "user", "content": [{"type": IMAGE, IMAGE: "x"}] * pictures + [{"type": "text", "text": text}]}


def test_where_no_turn_fits_any_more_the_episode_ends(
    engine: RolloutEngine, loaded: Loaded, referee: Referee, played: dict[int, Played]
) -> None:
    short = play(driver(engine, loaded, referee, most=90))
    ended = [r for one in short.values() for r in one.rollouts]
    longest = max(len(short[r.number // EACH].prompt) + len(r.token_ids) for r in ended)
    assert longest <= 90 and any(len(r.responses) < 3 and r.finish == LENGTH for r in ended)
    for i, one in short.items():
        for r, before in zip(one.rollouts, played[i].rollouts, strict=True):
            assert before.token_ids[: len(r.token_ids)] == r.token_ids and before.given[: len(r.given)] == r.given


def test_what_goes_otherwise_when_it_is_played_again_is_refused(
    engine: RolloutEngine, loaded: Loaded, referee: Referee, played: dict[int, Played]
) -> None:
    """Other responses give other pictures; another turn of the same pictures gives other tokens."""
    episodes = driver(engine, loaded, referee)
    group, rollout = max(
        ((group, rollout) for group in groups_of(played) for rollout in group.rollouts),
        key=lambda pair: (pair[1].patches, len(pair[1].given)),
    )
    place, key = int(group.prompt[1:]), f"{group.prompt}#{rollout.number}"
    batch = lay_out_packs([Answer(group, rollout, 1.0)], "sample", BUDGET, 1, 1, COST)
    packs = AnswerPacks(loaded.engine.features.files, 0, BUDGET, "sample")
    prompts = {group.prompt: played[place].prompt}
    (turns,) = episodes.turns([(group.prompt, EPISODES[place], rollout)])
    packs.make(batch, 0, prompts, {key: turns})
    assert len(packs.next_step()[0].grids) == len(rollout.media)
    for changed in (
        (replace(turns[0], media=()), *turns[1:]),
        (replace(turns[0], input_ids=turns[0].input_ids + 1), *turns[1:]),
        turns[:-1],
    ):
        with pytest.raises(SampleError, match=r"not those it was rolled out with|not the one that was seen|turns of"):
            packs.make(batch, 0, prompts, {key: changed})


def test_rollouts_of_several_turns_come_back_from_a_checkpoint(played: dict[int, Played]) -> None:
    for group in groups_of(played):
        assert _group(json.loads(json.dumps(asdict(group)))) == group


def test_positions_go_on_from_the_highest_in_front() -> None:
    """A picture's rows count higher than its tokens' places: what follows goes on from the highest."""
    first = Prompt(torch.arange(3), torch.tensor([[0, 1, 1], [0, 1, 4], [0, 1, 2]]), torch.tensor([1]), ())
    turn = Prompt(torch.arange(2), torch.tensor([[0, 1]] * 3), torch.tensor([0]), ())
    made = joined(first, turn)
    assert made.position_ids.tolist() == [[0, 1, 1, 5, 6], [0, 1, 4, 5, 6], [0, 1, 2, 5, 6]]
    assert made.visual_positions.tolist() == [1, 3] and np.array_equal(made.input_ids, [0, 1, 2, 0, 1])
