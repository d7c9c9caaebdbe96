"""Every option of a run, once, as frozen dataclasses. No OmegaConf below this file, and no torch in it.

One group of `conf/` is one dataclass. A docstring under a field gives its unit and meaning.
Values are checked by `config/validate.py`; how YAML becomes these objects is `config/load.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .cluster import ClusterConfig
from .rl import RLConfig


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The vision encoder (an AIMv2-shaped ViT) and the merger behind it; arXiv 2507.01006, section 2."""

    depth: int
    """Number of transformer blocks."""
    hidden: int
    heads: int
    ffn: int
    """Width of a block's SwiGLU."""
    merger_ffn: int
    """Width of the merger's SwiGLU."""
    patch: int = 14
    """Pixels along one side of a patch."""
    temporal_patch: int = 2
    """Frames in one patch; a single image is repeated to fill it."""
    merge: int = 2
    """Patches along one side of the block that becomes one language token."""
    position_grid: int = 24
    """Side of the learned absolute position grid (336 / 14); interpolated bicubically to each image."""
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def patch_values(self) -> int:
        """Numbers in one patch: channels x frames x height x width."""
        return 3 * self.temporal_patch * self.patch * self.patch


@dataclass(frozen=True, kw_only=True)
class MoEConfig:
    """Sparse layers with a sigmoid router and loss-free balancing; arXiv 2507.01006, section 3.2."""

    experts: int
    topk: int
    ffn: int
    """Width of one routed expert's SwiGLU."""
    shared_ffn: int
    """Width of the shared expert's SwiGLU."""
    first_dense: int = 1
    """Number of leading layers that stay dense."""
    bias_rate: float = 1e-3
    """Step of the expert bias toward the mean load, where the stage moves it (stage.expert_bias)."""
    aux_loss: float = 1e-4
    """Coefficient of the balance loss, which is the mean over samples of each sample's own; 0 switches it off."""
    scaling: float = 1.0
    """Factor on the combined routed output."""


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The language decoder."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    """Width of a dense layer's SwiGLU."""
    vocab: int
    """Rows of the embedding; at least the tokenizer's size."""
    mrope_section: tuple[int, int, int] = (8, 12, 12)
    """Rotary frequencies given to time, height, width; the sum is head_dim x rotary_percent / 2."""
    rotary_percent: float = 0.5
    rotary_interleaved: bool = False
    """Pairs (0,1),(2,3).. are rotated (GLM-4.1V) instead of halves (GLM-4.5V)."""
    rope_theta: float = 10000.0
    sandwich_norm: bool = False
    """RMSNorm also behind attention and MLP (GLM-4.1V)."""
    max_position: int = 65536
    norm_eps: float = 1e-5
    init_std: float = 0.02
    moe: MoEConfig | None = None
    """None: every layer is dense."""


@dataclass(frozen=True, kw_only=True)
class MTPConfig:
    """Multi-token prediction (model/prediction.py): a layer behind the decoder learns the token behind the next."""

    layers: int = 0
    """0 or 1. The released GLM-4.5V has none; GLM-4.5-Air, which pre-training starts from, has one."""
    loss_weight: float = 0.3
    """Factor on the layer's loss and on its balance loss: 0.3 for 15T tokens and 0.1 from there on in arXiv 2508.06471,
    section 2.4."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    name: str
    text: TextConfig
    vision: VisionConfig
    mtp: MTPConfig = field(default_factory=MTPConfig)


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """The layout. World size is tensor x pipeline x context x data; expert x expert_tensor spans ranks of one stage."""

    tensor: int = 1
    pipeline: int = 1
    virtual_pipeline: int = 1
    """Model chunks per pipeline rank (interleaved schedule)."""
    context: int = 1
    expert: int = 1
    expert_tensor: int | None = None
    """None: 1 where expert > 1, else equal to tensor."""
    data: int | None = None
    """None: derived from the launcher's world size; 1 when we start the ranks ourselves."""
    sequence: bool | None = None
    """Sequence parallelism. None: on where tensor > 1."""
    encoder_data: bool = True
    """Images are spread over the tensor ranks that would otherwise all encode all of them."""
    encoder_tensor: bool = False
    """The encoder's linear layers are sharded over the tensor ranks, which then encode together; `encoder_data` spreads
    images over the context ranks only. For an encoder that does not fit one device."""
    pipeline_layers: tuple[int, ...] | None = None
    """Decoder layers of each chunk, in the order of the layers. None: as `pipeline_split` says."""
    pipeline_split: str = "even"
    """even: equally many layers, which needs divisibility. balanced: chunks of equal cost, the encoder counted with the
    first and the output layer with the last (config/pipeline_split.py)."""
    pipeline_visual_share: float = 0.5
    """Share of a pack's tokens that are visual, for `pipeline_split=balanced`; `glmv data stats` tells."""
    overlap_grad_reduce: bool = False
    """Reduce gradients while the backward pass is running."""
    overlap_param_gather: bool = False
    """Gather updated parameters while the forward pass is running; needs overlap_grad_reduce."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    path: str = ""
    """Directory of training shards (`glmv data make`)."""
    val_path: str = ""
    """Directory of held-out shards for validation loss; auto: the directory `val` beside `path` where there is one;
    empty: none."""
    tokenizer: str = ""
    """Directory with tokenizer.json; empty: the one in `path`/tokenizer."""
    template: str = "glm45v"
    """Chat template: glm45v, glm41v, or (in conf/ and on the command line) auto: that of the model."""
    pack_tokens: int = 8192
    """Tokens of one pack, which is one micro-batch of one sequence."""
    pack_window: int = 1024
    """Samples that compete for places in packs (best fit); order outside a window is the shuffled order."""
    mixture: dict[str, float] | None = None
    """Weight of each domain in the stream of samples, as {vqa:2,video:1}; null: all samples alike, in epochs."""
    mixture_schedule: dict[int, dict[str, float]] | None = None
    """Other weights from a sample of the stream on, as {500000:{vqa:1,video:3}}."""
    max_epochs: dict[str, float] | None = None
    """Most epochs of a domain; at its cap it leaves its share to the others."""
    image_min_pixels: int = 12544
    """Least height x width x 2 of a resized image (both duplicated frames count, as in GLM's processor)."""
    image_max_pixels: int = 9633792
    """Most height x width x 2 of a resized image."""
    video_min_pixels: int = 12544
    """Least height x width x frames of a resized video."""
    video_max_pixels: int = 47040000
    """Most height x width x frames of a resized video."""
    video_fps: float = 2.0
    """Frames sampled per second."""
    video_max_frames: int = 600
    max_media_bytes: int = 1 << 30
    """Largest media file that is read."""
    max_image_pixels: int = 1 << 27
    """Largest width x height of a file that is decoded."""
    workers: int = 1
    """Decoder processes per loading rank; 0 decodes in the rank itself."""
    decode_on: str = "cpu"
    """cpu, or gpu: video by NVDEC and JPEG by nvJPEG, on the rank's GPU where it has one, and what these cannot on the
    CPU. Each worker then takes a CUDA context and decoders (docs/data.md)."""
    prefetch: int = 2
    """Steps prepared ahead."""
    quarantine_budget: float = 0.01
    """Share of samples that may fail before the run stops with the data exit code."""
    log_samples: bool = False
    """Write samples.jsonl: the ids of every global batch."""


KINDS = ("embedding", "head", "norm", "bias", "router", "matrix", "convolution")
"""What `optim.no_decay` may name."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW or Muon with a linear warm-up and a cosine to `min_lr`. The fields `muon_*` are for name=muon."""

    name: str = "adamw"
    """adamw, or muon: Muon for matrices, AdamW for embeddings, the output head, convolutions, biases and norms."""
    lr: float = 3e-4
    min_lr: float = 3e-5
    warmup_steps: int = 100
    """A run of fewer steps ends within the warm-up."""
    lr_vision: float = 1.0
    """Factor on `lr` and `min_lr` for the vision encoder."""
    lr_merger: float = 1.0
    """Factor for the merger (downsampling and projection)."""
    lr_decoder: float = 1.0
    """Factor for the language model."""
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    """Decoupled: each update takes lr x weight_decay of a weight away."""
    no_decay: tuple[str, ...] = ("bias", "norm")
    """Kinds of parameters without decay: embedding, head, norm, bias, router, matrix, convolution."""
    clip_grad: float = 1.0
    cpu_offload: float = 0.0
    """Share of the optimizer's states kept on the CPU. Only 0: megatron-core's implementation loses loaded weights
    (docs/memory.md)."""
    muon_momentum: float = 0.95
    muon_nesterov: bool = True
    muon_steps: int = 5
    """Newton-Schulz steps."""
    muon_rms: float = 0.2
    """Root mean square of an update of a matrix, before the learning rate; 0.2 is about AdamW's, so that one `lr` fits
    both."""
    muon_scale: str = "measured"
    """measured: each update has this size exactly. shape: it is multiplied by muon_rms x sqrt(longer side), which gives
    0.7 to 1.13 of it (Newton-Schulz does not reach 1), and less to an expert that few tokens reach."""
    muon_precision: str = "auto"
    """Of the products in Newton-Schulz: fp32, bf16, or auto: bf16 unless precision is fp32."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    steps: int = 1000
    """Optimizer steps of the whole run; the schedule ends here."""
    stop_step: int | None = None
    """Save and end with exit code 0 at this step, so that another command or layout can continue."""
    seed: int = 1234
    global_batch: int = 8
    """Packs per optimizer step."""
    batch_until: dict[int, int] | None = None
    """Batch-size warm-up: packs per step before a step, as {1000:256,3000:512}: 256 in the first 1,000 steps, 512 up to
    step 3,000, then `global_batch`. The order of packs stays the same."""
    log_every: int = 1
    """Steps between lines on the terminal or in the log (metrics.jsonl has every step)."""
    val_every: int = 0
    """Steps between validations; 0: none."""
    val_packs: int = 8
    """Packs of one validation."""
    recompute: str = "none"
    """Activation recomputation in the decoder: none, selective (core attention) or full (whole layers)."""
    moe_router_fusion: bool = False
    """Routing in one kernel of Transformer Engine (2.7 or later); backend te only."""
    moe_permute_fusion: bool = False
    """Ordering tokens by expert in one kernel of Transformer Engine; backend te only."""
    recompute_vision: bool | None = None
    """Recompute whole layers of the vision encoder. None: where the decoder does (full)."""

    def batch_at(self, done: int) -> int:
        """Packs of the step behind `done` steps."""
        ramp = sorted((self.batch_until or {}).items())
        return next((packs for until, packs in ramp if done < until), self.global_batch)


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    every: int = 100
    """Steps between checkpoints; the last step is always saved. 0: only the last."""
    keep: int = 2
    """Committed checkpoints to keep."""
    best: bool = False
    """Save where a validation gives the lowest loss so far, and keep that one too: `checkpoints/best` points at it."""
    verify: bool = True
    """Compare sha256 of every file with the manifest before loading."""


@dataclass(frozen=True, kw_only=True)
class PrecisionConfig:
    name: str = "bf16"
    """fp32, bf16 or fp8 (bf16 with FP8 matrix products)."""
    fp8_recipe: str = "tensorwise"
    """delayed, tensorwise or blockwise."""
    fp8_backend: str = "te"
    """Who computes in FP8: te (Transformer Engine, GPU only) or emulate (rounds to FP8 and back, anywhere, slower)."""
    grad_reduce_fp32: bool = True
    """Accumulate and reduce gradients in fp32."""


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where numbers are shown beside metrics.jsonl."""

    sinks: tuple[str, ...] = ("tensorboard",)
    """Any of tensorboard, wandb (offline) and mlflow (local files), all below the run directory."""


SINKS = ("tensorboard", "wandb", "mlflow")
"""What `tracking.sinks` may name."""

PARTS = ("vision", "merger", "decoder")
"""What `stage.freeze` may name."""


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    name: str = "pretrain"
    expert_bias: str = "auto"
    """Bias of loss-free balancing: moving (by model.text.moe.bias_rate), frozen, or auto: frozen in sft and rlcs,
    moving elsewhere (arXiv 2507.01006 gives the rate for pre-training; arXiv 2508.06471 ends training at rate 0)."""

    freeze: tuple[str, ...] = ()
    """Parts that are not trained: vision (the ViT), merger (downsampling and projection), decoder."""
    freeze_until: dict[str, int] | None = None
    """Parts that are not trained before a step, as {vision:1000}: the first update of the ViT is that of step 1,001.
    The run saves a checkpoint there and goes on from it."""

    def frozen_at(self, done: int) -> tuple[str, ...]:
        """Parts that the step behind `done` steps does not train."""
        later = tuple(part for part, until in (self.freeze_until or {}).items() if done < until)
        return tuple(part for part in PARTS if part in self.freeze or part in later)

    def thawed_by(self, done: int) -> tuple[str, ...]:
        """Parts whose first update is that of the step behind `done` steps: they have no optimizer state yet."""
        return tuple(p for p, until in (self.freeze_until or {}).items() if done == until and p not in self.freeze)

    def next_thaw(self, done: int) -> int | None:
        """The next number of steps done behind which more is trained than before."""
        return min((until for until in (self.freeze_until or {}).values() if until > done), default=None)

    @property
    def bias_moves(self) -> bool:
        """Whether training changes expert biases. Those of a frozen decoder stay, whatever `expert_bias` says."""
        if "decoder" in self.freeze or self.expert_bias == "frozen":
            return False
        return self.expert_bias == "moving" or self.name not in ("sft", "rlcs")


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run. `config/load.py` makes it, `config/validate.py` accepts or refuses it."""

    experiment: str
    model: ModelConfig
    stage: StageConfig = field(default_factory=StageConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    rl: RLConfig = field(default_factory=RLConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    watchdog_s: float = 1800.0
    """Seconds without progress (a micro-batch, a step, a checkpoint) after which a rank ends the run with the hang
    code; 0: never. The first step gets three times as long."""
    platform: str = "auto"
    """cuda, cpu, or auto: cuda where a GPU is usable."""
    backend: str = "auto"
    """Layer specs: te (Transformer Engine), torch, or auto: te where it is usable."""
    run_dir: str | None = None
    """None: runs/<experiment>/<timestamp>."""
    init_from: str | None = None
    """A checkpoint whose weights the run starts from (optimizer fresh)."""
    resume: str = "auto"
    """auto: continue from the newest committed checkpoint in run_dir, unless an option that decides the run's numbers
    has changed; anyway: also then; never: refuse a run_dir that has one."""
