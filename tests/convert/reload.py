"""transformers loads what was exported: python reload.py JOB. It cannot import megatron_glmv (reference.py)."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "parity"))

from reference import Barrier, declare_operators, logits_and_positions, prove_barrier


def main(job: Path) -> None:
    sys.meta_path.insert(0, Barrier())
    assert len(prove_barrier()) == 2
    operators = declare_operators()  # noqa: F841  # for as long as it is referenced
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForImageTextToText, utils

    utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    spec = json.loads((job / "job.json").read_text())
    reports = []
    for i, directory in enumerate(spec["directories"]):
        model, info = AutoModelForImageTextToText.from_pretrained(
            directory, output_loading_info=True, attn_implementation="eager", experts_implementation="eager"
        )
        stored = str(model.dtype)
        bias = {str(b.dtype) for n, b in model.named_buffers() if n.endswith("e_score_correction_bias")}
        with torch.no_grad():
            logits, _ = logits_and_positions(model.float().eval(), load_file(spec["input"]))
        save_file({"logits": logits.contiguous()}, job / f"{i}.safetensors")
        keys = ("missing_keys", "unexpected_keys", "mismatched_keys")
        report = {key: sorted(map(str, info[key])) for key in keys}
        reports.append({**report, "dtype": stored, "bias": sorted(bias)})
    (job / "report.json").write_text(json.dumps(reports))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
