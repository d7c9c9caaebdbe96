"""Plants known errors, one at a time, in a copy of the source, and shows which test of the suite notices each.

    python tools/mutations.py            # all, about two minutes of CPU time
    python tools/mutations.py sandwich   # those whose name has the word

The copy is thrown away. Ends with 1 when an error goes unnoticed, a test fails without one, or the text that an error
replaces is not in the source (any more).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("megatron_glmv", "tests", "conf")
TIMEOUT_S = 300
"""For a test; one that takes longer hangs, which is noticed too. Ten are given three times as long together."""


@dataclass(frozen=True)
class Mutation:
    """An error that somebody could make."""

    name: str
    file: str
    """Below megatron_glmv/."""
    right: str
    """Occurs once in the file."""
    wrong: str
    test: str
    """The test that has to fail: pytest's node id below tests/."""


PARTS, MODEL, MOE = "unit/test_model_parts.py", "dist/test_model_invariants.py", "dist/test_moe.py"
PREDICTION = "dist/test_prediction.py"

MUTATIONS = (
    Mutation(
        "height and width sections of M-RoPE swapped",
        "model/rope.py",
        "part[axis % 3]",
        "part[(0, 2, 1)[axis % 3]]",
        f"{PARTS}::test_text_angles_give_each_frequency_to_one_axis",
    ),
    Mutation(
        "the other rotary style",
        "model/rope.py",
        "if self.interleaved else",
        "if not self.interleaved else",
        f"{PARTS}::test_text_angles_give_each_frequency_to_one_axis",
    ),
    Mutation(
        "attention does not restart at a packed sample",
        "train/step.py",
        "packed_segments(batch.cu_seqlens.to(device)",
        "packed_segments(batch.cu_seqlens[[0, -1]].to(device)",
        f"{MODEL}::test_a_pack_of_samples_is_its_samples_one_by_one",
    ),
    Mutation(
        "positions do not restart at a packed sample",
        "data/collate.py",
        "positions[:, span] = layout.position_ids",
        "positions[:, span] = layout.position_ids + start",
        "data/test_loader.py::test_a_pack_is_its_samples_side_by_side",
    ),
    Mutation(
        "a sandwich norm dropped",
        "model/sandwich.py",
        "        self.mlp_bda: Any = _norm_then_add(self.mlp_bda, self.post_mlp_layernorm)\n",
        "",
        f"{MODEL}::test_sandwich_norms_stand_behind_attention_and_mlp",
    ),
    Mutation(
        "encoder gradients times TP",
        "train/step.py",
        "        dist.all_reduce(flat, group=group)\n",
        "        dist.all_reduce(flat, group=group)\n        flat *= group.size()\n",
        f"{MODEL}::test_each_encoder_gradient_is_that_of_one_process_when_its_work_is_spread",
    ),
    Mutation(
        "empty-encoder touch skipped",
        "model/glmv.py",
        "        if visual is None:\n",
        "        if visual is None or len(visual.grids) == 0:\n",
        f"{MODEL}::test_a_pack_without_images_touches_every_encoder_parameter_with_zero",
    ),
    Mutation(
        "padding counted in the expert bias",
        "model/router.py",
        "routing_map = routing_map & ~padding_mask[:, None]",
        "routing_map = routing_map",
        f"{MOE}::test_bias_moves_by_the_rate_against_the_load",
    ),
    Mutation(
        "bf16 bias",
        "model/router.py",
        "        super()._maintain_float32_expert_bias()\n",
        "",
        f"{MOE}::test_bias_moves_by_the_rate_against_the_load",
    ),
    Mutation(
        "expert bias moves in SFT",
        "model/config.py",
        "moe.bias_rate if bias_moves else 0.0",
        "moe.bias_rate",
        f"{MOE}::test_a_frozen_bias_keeps_every_bit",
    ),
    Mutation(
        "balance loss of the pack instead of its samples",
        "model/router.py",
        "index_add(0, segments,",
        "index_add(0, segments * 0,",
        f"{MOE}::test_balance_loss_of_each_sample_by_hand",
    ),
    Mutation(
        "expert loads of one tensor rank in the balance loss",
        "model/router.py",
        "                dist.all_reduce(counts, group=self.tp_cp_group)\n",
        "                pass\n",
        f"{MOE}::test_balance_loss_has_its_gradient_when_tensor_ranks_share_a_sample",
    ),
    Mutation(
        "a prediction across the end of a sample",
        "model/prediction.py",
        "absent = padding | next_of(padding) | last",
        "absent = padding",
        f"{PREDICTION}::test_nothing_is_predicted_across_the_end_of_a_sample",
    ),
    Mutation(
        "a balance loss of the prediction layer that its loss weight does not scale",
        "model/router.py",
        "scale * module.balance_share",
        "scale",
        f"{PREDICTION}::test_with_weight_0_the_other_gradients_are_those_without_the_layer_in_every_bit",
    ),
    Mutation(
        "interleaved stages with batched messages",
        "model/config.py",
        "        overlap_p2p_comm=interleaved,\n        batch_p2p_comm=not interleaved,\n",
        "        overlap_p2p_comm=False,\n        batch_p2p_comm=True,\n",
        "dist/test_traps.py::test_interleaved_stages_with_batched_messages_mix_them_up",
    ),
)


def run_tests(tree: Path, tests: list[str]) -> list[str] | None:
    """The tests that fail, empty if none; None where pytest could not run them. In the copy `tree`."""
    timeout = TIMEOUT_S * max(1, len(tests) // 3)
    environment = {**os.environ, "PYTHONPATH": f"{tree}{os.pathsep}{tree / 'tests'}", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-rf", "-p", "no:cacheprovider", "--color=no", *tests]
    try:
        done = subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return [f"{' '.join(tests)} hung for {timeout} s"]
    if done.returncode not in (0, 1):
        print(done.stdout[-2000:], done.stderr[-2000:], file=sys.stderr)
        return None
    return re.findall(r"^FAILED (\S+?)(?: - .*)?$", done.stdout, re.MULTILINE)


def plant(tree: Path, mutation: Mutation) -> str:
    """Applies a mutation; returns the file's text before. Raises ValueError when its place is not found once."""
    path = tree / "megatron_glmv" / mutation.file
    before = path.read_text()
    if before.count(mutation.right) != 1:
        raise ValueError(f"{mutation.file} has {before.count(mutation.right)} places like {mutation.right!r}")
    path.write_text(before.replace(mutation.right, mutation.wrong))
    return before


def main(words: list[str]) -> int:
    chosen = [m for m in MUTATIONS if all(word in m.name for word in words)]
    if not chosen:
        print(f"no error has {' and '.join(words)} in its name", file=sys.stderr)
        return 1
    unnoticed = 0
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        tree = Path(folder)
        for name in COPIED:
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", tree)
        tests = list(dict.fromkeys(f"tests/{m.test}" for m in chosen))
        failing = run_tests(tree, tests)
        if failing != []:
            print(f"without an error: {failing or 'the tests could not run'}", file=sys.stderr)
            return 1
        print(f"without an error: none of {len(tests)} tests fails", flush=True)
        width = max(len(m.name) for m in chosen)
        for mutation in chosen:
            before = plant(tree, mutation)
            found = run_tests(tree, [f"tests/{mutation.test}"])
            (tree / "megatron_glmv" / mutation.file).write_text(before)
            unnoticed += not found
            shown = found[0] if found else "NOT NOTICED"
            print(f"{mutation.name:{width}}  {shown}", flush=True)
    return int(unnoticed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
