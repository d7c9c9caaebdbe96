"""Options of reinforcement learning (`stage=rlcs`). Where a value comes from: docs/rlcs.md."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class CurriculumConfig:
    """Difficulty tiers and how often each is asked (rl/curriculum.py)."""

    enabled: bool = True
    """False: every prompt of a domain is equally likely."""
    edges: tuple[float, ...] = (0.0625, 0.3, 0.7, 0.9375)
    """Pass rates between which the tiers lie, ascending: very hard, hard, middle, easy, very easy."""
    floor: float = 0.02
    """Weight of a tier that is all right or all wrong; that of one half right is 1 more."""
    ema: float = 0.8
    """Share of a tier's running pass rate that stays when a group of it was seen."""
    keep: float = 0.5
    """Share of the older evidence on a prompt that stays when it is seen again; offline labels and grading are the
    oldest."""
    label_weight: float = 4.0
    """Answers that a label from the prompt file counts as."""
    grade: int = 0
    """Prompts of each subcategory that the initial model grades before the first step (its rollouts are counted)."""
    mix: dict[str, float] | None = None
    """Share of each domain among the prompts, as {math:2,chart:1}; null: alike."""


@dataclass(frozen=True, kw_only=True)
class ExpansionConfig:
    """Which of the rolled out groups are trained (rl/expansion.py)."""

    reading: str = "budget"
    """none: all; rollouts: `groups` are trained and more are rolled out; budget: `groups` are rolled out and fewer are
    trained; refill: until `groups` valid ones are there (DAPO's dynamic sampling)."""
    ema: float = 0.8
    """Share of the ratio's running mean that stays each iteration."""
    cap: float = 3.0
    """Largest ratio."""
    least_valid: float = 0.1
    """Where no tier has at least this share of valid groups, more rollouts find no more: the ratio is 1."""
    refill_batches: int = 10
    """Most batches that `refill` rolls out in an iteration."""


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Rollout servers (`rl.engine=vllm` or `sglang`); docs/rollout_servers.md."""

    urls: tuple[str, ...] = ()
    """Addresses, as [http://node7:8000,http://node8:8000], or the one of a router. Empty: those in the environment
    variable GLMV_ROLLOUT_URLS, else the nodes of the second part of a heterogeneous Slurm job."""
    port: int = 8000
    """Of the servers on the nodes that Slurm names."""
    model: str = ""
    """Name under which the servers serve the policy; empty: whatever single one they have."""
    update: str = "distributed"
    """How new weights get there. distributed: broadcast in buckets from the first rank; disk: as a checkpoint in a
    directory that the servers see."""
    exchange: str = ""
    """That directory; empty: RUN_DIR/weights."""
    bucket_mb: int = 256
    """Most MiB of weights in one broadcast; a tensor that is larger goes alone."""
    address: str = ""
    """Name or address under which servers reach the first rank; empty: its host name."""
    timeout_s: float = 600.0
    """For one request, its answers included."""
    retries: int = 4
    """Further attempts where a server does not answer, each at the next server, after 0.5, 1, 2 .. 15 seconds."""
    in_flight: int = 64
    """Prompts that a rank has asked and not got answered."""
    probe: int = 4
    """Prompts whose answers compare the servers with the trained weights after every update; 0: none."""
    key_env: str = ""
    """Environment variable with the servers' key; empty: none is sent."""


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """A judge model behind an OpenAI-compatible endpoint: for prompts without a verifier (domain `open_ended`, the RLHF
    branch) and for what rules can't decide; docs/rewards.md."""

    url: str = ""
    """http://HOST:PORT/v1; empty: none is asked."""
    model: str = ""
    """Name under which the endpoint serves it."""
    key_env: str = ""
    """Environment variable with the endpoint's key; empty: none is sent."""
    votes: int = 3
    """Answers of the judge to each question, an odd number; the majority or the median counts."""
    seconds: float = 30.0
    """For one vote, repetitions included."""
    parallel: int = 8
    """Questions of a rank that are asked at the same time."""


@dataclass(frozen=True, kw_only=True)
class EnvironmentConfig:
    """Episodes of several turns (prompts that name an environment); docs/environments.md."""

    turns: int = 8
    """Most turns of an episode; its environment may allow fewer."""
    seconds: float = 10.0
    """Limit of one step; an episode that takes longer is over, with reward 0."""
    workers: int = 2
    """Processes of a rank in which environments run; they start with the first episode."""


@dataclass(frozen=True, kw_only=True)
class RewardModelConfig:
    """A scalar reward model behind a vLLM or SGLang server, for prompts without a verifier (domain `open_ended`, the
    RLHF branch), in the place of the judge model; docs/rewards.md."""

    url: str = ""
    """http://HOST:PORT; empty: none is asked."""
    model: str = ""
    """Name under which the server serves it."""
    key_env: str = ""
    """Environment variable with the server's key; empty: none is sent."""
    api: str = "classify"
    """classify, pooling, score: vLLM's paths of these names; sglang: SGLang's /classify."""
    template: str = ""
    """A directory with its chat template; sglang alone needs it."""
    images: bool = False
    """Send the prompt's images, too (classify and pooling)."""
    mean: float = 0.0
    """Scalar that is worth 0.5."""
    std: float = 1.0
    """What a step of one in the sigmoid's argument is in scalars: reward = sigmoid((scalar - mean) / std)."""
    clip: float = 10.0
    """Bound of that argument."""
    seconds: float = 30.0
    """For one request, repetitions included."""
    parallel: int = 8
    """Requests of a rank at the same time."""
    batch: int = 16
    """Answers in a request, where the API takes several (score, sglang)."""


@dataclass(frozen=True, kw_only=True)
class RLConfig:
    """Reinforcement learning with curriculum sampling; arXiv 2507.01006, section 5."""

    prompts: str = ""
    """JSON Lines of conversations with answers, in the shape of `glmv eval`."""
    heldout: str = ""
    """The same, for evaluation; empty: none."""
    heldout_each: int = 16
    """Questions of each task that are evaluated, the first of the file."""
    heldout_every: int = 10
    """Steps between evaluations; the first comes before step 1, the last after the last step. 0: only those two."""
    heldout_samples: int = 1
    """Sampled answers to each; the greedy one comes beside."""
    engine: str = "inprocess"
    """inprocess: a copy of the model in every rank; vllm, sglang: servers."""
    server: ServerConfig = field(default_factory=ServerConfig)
    groups: int = 32
    """Prompts of an iteration."""
    group_size: int = 8
    """Answers to each prompt."""
    updates: int = 1
    """Optimizer steps on the answers of an iteration."""
    max_new_tokens: int = 16
    """Tokens of an answer, thinking and inserted ones included; of several turns, of each."""
    thinking: bool = False
    """Leave the thinking to the model."""
    thinking_budget: int | None = None
    """Tokens after which `</think>` is inserted, so that an answer is given and rewarded; null: never."""
    clip_low: float = 0.2
    clip_high: float = 0.28
    """Upper bound of the probability ratio, minus 1; above `clip_low` ("clip-higher")."""
    ratio: str = "token"
    """token, or sequence (GSPO)."""
    loss_mean: str = "sample"
    """sample: mean over tokens of each answer, then over answers; token: over all tokens."""
    by_deviation: bool = True
    """Divide advantages by the group's standard deviation."""
    staleness: int = 0
    """1: the next iteration is rolled out while the present one is trained, with weights one step older (needs
    `tis_cap`). 0: one after the other."""
    tis_cap: float | None = None
    """Cap of the importance weight between engine and training model; null: none is applied."""
    routing_replay: bool = False
    """Train with the experts that the rollout chose for each token, of which the engine tells (in process; models with
    experts)."""
    drift_limit: float | None = None
    """Mean difference of log-probabilities between engine and training model over an answer that stops the run; null:
    1e-3 in fp32, 0.5 in bf16."""
    verify_weights_every: int = 10
    """Steps between bitwise comparisons of the engine's weights with the trained ones; the first comes before step
    1."""
    batch_size: int = 256
    """Answers that are generated together."""
    log_groups: bool = True
    """Write groups.jsonl: rewards, tiers and advantages of every iteration."""
    random_rewards: bool = False
    """A control: rewards are drawn by the seed, whatever the answer is; those of evaluation stay true."""
    browser: str = ""
    """The browser that shows pages (domain ui_to_code), by path or name; empty: the first known one on PATH."""
    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    reward_model: RewardModelConfig = field(default_factory=RewardModelConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    expansion: ExpansionConfig = field(default_factory=ExpansionConfig)
