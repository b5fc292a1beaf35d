"""The compute that this project's recipe needs to reach the loss of the paper's recipe, at small scale.

    python -m benchmarks.compute_to_loss --data data/emoji-tokens --out runs/compute

Both have the same width, depth, data, sequence length and objective (all tokens have equal weight). The loss is the
mean cross-entropy on the held-out split. The baseline is CM3leon's architecture (section 2.3: no biases, LayerNorm
without parameters, learned positions, output layers initialised to 0) with GELU, AdamW and a cosine schedule; learning
rate and batch size are tuned here. The recipe is run at several budgets, each with its own schedule, so that a point of
the curve is a finished run. train/plan.py counts FLOPs, with padding and Muon's iterations.

Every run is a `python -m train.lm`. Results of finished runs are kept, so that an interrupted benchmark can be resumed.
"""

import hashlib
import json
import math
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.report import finish

MODEL = {"model.hidden_size": 128, "model.num_hidden_layers": 4, "model.num_attention_heads": 4}
SHARED = {
    "preset": "emoji",
    **MODEL,
    "data.seq_len": 256,
    "samples.every": 0,
    "checkpoint.every": 10**6,
    "samples.prompts": (),
    "codebook_init": False,
    "objective.prompt_weight": 1.0,
    "objective.answer_weight": 1.0,
    "objective.first_code_weight": 1.0,
    "objective.code_weight": 1.0,
    "eval.sequences": 256,
    "eval.every": 10**6,
}
BASELINE = {
    "model.norm": "layernorm",
    "model.position": "learned",
    "model.activation": "gelu",
    "model.qk_norm": False,
    "model.intermediate_size": 512,
    "model.tie_word_embeddings": True,
    "model.init_std": 0.02,
    "optim.matrix_optimizer": "adamw",
    "optim.schedule": "cosine",
    "optim.final_lr_fraction": 0.1,
    "optim.betas": (0.9, 0.95),
    "optim.weight_decay": 0.1,
    "optim.lr": 2e-3,
    "batch_tokens": 4096,
    "optim.spike_sigmas": 0.0,
}
# Applied one after the other, each in addition to those before it.
CHANGES: dict[str, dict[str, Any]] = {
    "rotary positions": {"model.position": "rope"},
    "RMSNorm with scales": {"model.norm": "rmsnorm"},
    "SwiGLU": {"model.activation": "swiglu", "model.intermediate_size": 352},
    "QK-norm": {"model.qk_norm": True},
    "head of its own": {"model.tie_word_embeddings": False},
    "Muon": {"optim.matrix_optimizer": "muon", "optim.muon_lr": 0.02, "optim.weight_decay": 0.01},
    "codes start from the codebook": {"codebook_init": True},
    "stay, then fall to 0": {"optim.schedule": "wsd", "optim.decay_fraction": 0.6, "optim.final_lr_fraction": 0.0},
}


BETAS = [{"optim.betas": (0.9, 0.95)}, {"optim.betas": (0.9, 0.98)}]


class Runner:
    """Runs train.lm, once for equal settings."""

    def __init__(self, data: Path, out: Path):
        self.data, self.out = data, out

    def __call__(self, name: str, settings: dict[str, Any], tokens: int, seed: int) -> dict[str, float]:
        """The held-out "loss", "flops" and "tokens" of a finished run."""
        steps = max(1, tokens // settings["batch_tokens"])
        whole = {
            "steps": steps,
            "optim.warmup_steps": max(10, steps // 20),
            "seed": seed,
            "data.folder": str(self.data),
        }
        every = SHARED | settings | whole
        overrides = sorted(f"{key}={toml(value)}" for key, value in every.items())
        folder = self.out / hashlib.sha256("\n".join(overrides).encode()).hexdigest()[:12]
        if not (folder / "done.json").exists():
            subprocess.run(
                [sys.executable, "-m", "train.lm", "--out", str(folder), *overrides],
                check=True,
                stdout=subprocess.DEVNULL,
            )
            rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
            flops = next(row["flops"] for row in reversed(rows) if "flops" in row)
            loss = next(row["held_out_loss"]["all"] for row in reversed(rows) if "held_out_loss" in row)
            result = {"loss": loss, "flops": flops, "tokens": steps * settings["batch_tokens"]}
            (folder / "done.json").write_text(json.dumps({"name": name, **result}))
            for part in ("checkpoints", "model"):
                shutil.rmtree(folder / part)
        result = json.loads((folder / "done.json").read_text())
        print(f"{name:40} {result['loss']:.4f} {result['flops']:.3g} FLOPs", flush=True)
        return result


def toml(value: Any) -> str:
    """A value in TOML."""
    """A value in TOML."""
    """A value in TOML."""
    return str(value).lower() if isinstance(value, bool) else json.dumps(value)


def tuned(
    run: Runner, settings: dict[str, Any], tokens: int, stem: str, choices: list[dict[str, Any]]
) -> dict[str, Any]:
    """The settings with the choice that gives the lowest loss."""
    losses = []
    for choice in choices:
        name = f"{stem}-" + "-".join(f"{key.rpartition('.')[2]}{value}" for key, value in choice.items())
        losses.append(run(name, settings | choice, tokens, 0)["loss"])
    return settings | choices[losses.index(min(losses))]


def needed(budgets: list[float], losses: list[float], target: float) -> float | None:
    """The budget at which a falling curve reaches the target, interpolated linearly in the logarithm of the budget;
    None if it does not."""
    for i in range(len(budgets)):
        if losses[i] <= target:
            if i == 0:
                return budgets[0]
            share = (losses[i - 1] - target) / (losses[i - 1] - losses[i])
            return budgets[i - 1] * math.exp(share * math.log(budgets[i] / budgets[i - 1]))
    return None


def main(
    data: Annotated[Path, typer.Option(help="token shards with a held-out split")] = Path("data/emoji-tokens"),
    out: Annotated[Path, typer.Option(help="folder of the runs")] = Path("runs/compute"),
    tokens: Annotated[int, typer.Option(help="of the baseline")] = 800 * 4096,
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    result: Annotated[Path | None, typer.Option(help="JSON file to keep the figures in")] = None,
) -> None:
    run = Runner(data, out)
    base = tuned(run, BASELINE, tokens, "baseline", [{"optim.lr": rate} for rate in (1e-3, 2e-3, 4e-3, 8e-3)])
    smaller = [{"batch_tokens": 4096, "optim.lr": base["optim.lr"]}]
    smaller += [{"batch_tokens": 2048, "optim.lr": rate} for rate in (base["optim.lr"] / 2, base["optim.lr"])]
    base = tuned(run, base, tokens, "baseline", smaller)
    base = tuned(run, base, tokens, "baseline", BETAS)
    ours = base
    for change in CHANGES.values():
        ours = ours | change
    part = tokens // 3
    ours = tuned(run, ours, part, "ours", [{"optim.muon_lr": rate} for rate in (0.01, 0.02, 0.04)])
    ours = tuned(
        run, ours, part, "ours-rate", [{"optim.lr": rate} for rate in (base["optim.lr"], 2 * base["optim.lr"])]
    )
    ours = tuned(run, ours, part, "ours-batch", [{"batch_tokens": size} for size in (1024, 2048, 4096)])
    ours = tuned(
        run, ours, part, "ours-rate", [{"optim.lr": rate} for rate in (ours["optim.lr"] / 2, ours["optim.lr"])]
    )
    ours = tuned(run, ours, part, "ours", [{"optim.muon_lr": rate} for rate in (0.005, 0.01, 0.02)])
    wide = [
        {key: ours[key] for key in ("model.activation", "model.intermediate_size")},
        {"model.activation": "relu2", "model.intermediate_size": 512},
    ]
    ours = tuned(run, ours, part, "ours-activation", wide)
    ours = tuned(run, ours, part, "ours", BETAS)

    shares = [0.25, 1 / 3, 0.4]
    pairs = []
    for seed in range(seeds):
        target = run(f"baseline-seed{seed}", base, tokens, seed)
        curve = [run(f"ours-{share:.2f}-seed{seed}", ours, int(tokens * share), seed) for share in shares]
        losses = [point["loss"] for point in curve]
        met = needed([point["flops"] for point in curve], losses, target["loss"])
        pairs.append(
            {
                "seed": seed,
                "target": target,
                "ours": curve,
                "flops": met,
                "share": met / target["flops"] if met else None,
            }
        )
    rows, settings = [], dict(base)
    first = run("ladder-0", settings, part, 0)
    rows.append({"change": "the baseline", "loss": first["loss"], "gain": 0.0, "flops": first["flops"]})
    for i, (name, change) in enumerate(CHANGES.items(), 1):
        settings |= change | ({"optim.muon_lr": ours["optim.muon_lr"]} if "optim.muon_lr" in change else {})
        now = run(f"ladder-{i}", settings, part, 0)
        rows.append({"change": name, "loss": now["loss"], "gain": first["loss"] - now["loss"], "flops": now["flops"]})
        first = now
    now = run("ladder-batch-and-rate", ours, part, 0)
    rows.append(
        {
            "change": "smaller batches, lower rate",
            "loss": now["loss"],
            "gain": first["loss"] - now["loss"],
            "flops": now["flops"],
        }
    )
    print(f"\nat {part} tokens, one after the other")
    for row in rows:
        print(f"{row['change']:32} {row['loss']:.4f}  {row['gain']:+.4f}")
    found = [pair["share"] for pair in pairs if pair["share"] is not None]
    mean = statistics.mean(found) if len(found) == len(pairs) else None
    print(f"\nshare of the baseline's FLOPs that ours needs for its loss: {mean} {found}")
    finish("compute_to_loss", result, baseline=base, ours=ours, seeds=pairs, changes=rows, share=mean)


if __name__ == "__main__":
    typer.run(main)
