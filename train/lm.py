"""Train the language model on token shards: drawing, captioning and answering with one set of weights.

    python -m train.lm --config train/configs/lm_emoji.toml --out runs/lm
    python -m train.lm --data data/mine --out runs/mine --dry-run                 # what it will take, before it starts
    python -m train.lm --data data/mine --out runs/mine start=emoji lora.rank=16  # fine-tune with adapters
    torchrun --nproc_per_node 8 -m train.lm --data data/mine --out runs/mine parallel=fsdp

OUT receives config.json, log.jsonl, samples-*.png, checkpoints/ (to resume: run the same command again) and model/,
which `CM3.from_pretrained` reads.
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from accelerate import Accelerator
from accelerate.local_sgd import LocalSGD
from torch import Tensor

from cm3.pipeline import CM3
from cm3.vocab import Vocab
from train.documents.shards import Shards
from train.language.config import LMConfig
from train.language.held_out import by_kind, evaluate
from train.language.lora import merged, save_adapter
from train.language.objective import KINDS
from train.language.packing import Batch, Position, Rows, Steps, load
from train.language.plan import plan_run
from train.language.setup import image_tokenizer_of, learner_of, lora_of, objective_of, optimizers_of, rebuilt
from train.pictures.sheet import contact_sheet
from train.runtime import config as configs
from train.runtime.checkpoint_state import ModelAndOptimizers, RandomState
from train.runtime.checkpoints import Checkpoints
from train.runtime.distributed import (
    collecting,
    gathered,
    launched,
    parallelized,
    summed,
    together,
    until_signalled,
    whole_state,
)
from train.runtime.flops import step_flops, utilisation
from train.runtime.lock import one_run
from train.runtime.optim import EMA, StepSkipper, rate
from train.runtime.precision import autocast, uses_bf16
from train.runtime.runlog import RunLog


def train(config: LMConfig, out: Path) -> Path:
    """The whole run; goes on from the newest checkpoint in OUT where there is one. Returns the model's folder."""
    accelerator = launched(config.processes, config.trackers, str(out))
    with one_run(out, accelerator):
        return train_locked(config, out, accelerator)


def train_locked(config: LMConfig, out: Path, accelerator: Accelerator) -> Path:
    """What `train` does while no other run does it in OUT."""
    objective, lora = objective_of(config), lora_of(config)
    device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
    per_rank = config.rows(world)
    micro = config.micro_rows or per_rank

    # 1. Data and model.
    shards = Shards(config.data, verify=config.verify, max_bad=config.max_bad)
    image_tokenizer, text = image_tokenizer_of(config, shards.meta), shards.text_tokenizer()
    learner, adapter = learner_of(config, shards.meta, image_tokenizer, device)
    model = learner.model
    vocab = Vocab.from_config(model.config)
    rows = Rows(shards, vocab, objective, config.row, config.seed, config.window)
    held_out = None
    if config.evaluate_every:
        held = Shards(config.data, "held_out", config.verify, config.max_bad)
        held_out = Rows(held, vocab, objective.plain(), config.row, 0, len(held))
    called = parallelized(learner, accelerator, config.parallel, uses_bf16(config.precision, device))
    optimizer = optimizers_of(learner, config, device)
    flops = step_flops(model.config, config.row, config.batch_tokens, optimizer)
    trained = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    average = None
    if config.ema:
        average = EMA(((n, p) for n, p in learner.named_parameters() if p.requires_grad), config.ema)
    watch = StepSkipper(config.spike)

    # 2. Where it stands.
    run: dict[str, Any] = {
        "position": list(Position()),
        "data": shards.fingerprint(),
        "row": config.row,
        "batch_tokens": config.batch_tokens,
        "window": config.window,
        "seed": config.seed,
        "bad_documents": 0,
    }
    apart = config.local_sgd and world > 1
    state = ModelAndOptimizers(learner, optimizer)
    parts = {f"apart@{rank} of {world}" if apart else "lm": state, "random": RandomState(), "watch": watch, "run": run}
    if average:
        parts["average"] = average.values
    checkpoints = Checkpoints(out / "checkpoints", config.keep, config.asynchronous, config.go_on)
    expected = {key: run[key] for key in ("data", "row", "batch_tokens", "window", "seed")}
    wanted = [
        [{key: value for key, value in group.items() if key != "params"} for group in one.param_groups]
        for one in optimizer
    ]
    try:
        first = checkpoints.load(parts) or 0
    except ValueError as error:
        hint = f"; with local_sgd the number of processes, now {world}, must stay the same" if apart else ""
        raise ValueError(f"{error}{hint}") from error
    for one, settings in zip(optimizer, wanted, strict=True):  # rates and decays are this command's, not the old one's
        for group, fields in zip(one.param_groups, settings, strict=True):
            group.update(fields)
    run = parts["run"]
    if other := [f"{key} was {run[key]!r}, now {now!r}" for key, now in expected.items() if run[key] != now]:
        raise ValueError(
            f"{out} holds a run on other data: {'; '.join(other)}; take another --out, or set start={out}/model"
        )
    if accelerator.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        configs.save(config, out / "config.json")
    steps = Steps(rows, per_rank * world, micro, first, Position(*run["position"]), rank, world)
    source = load(steps, config.steps, config.workers, device.type == "cuda")

    def hand_out() -> None:
        """Write OUT/model as something to use: averaged where that is asked for, no adapters, no shards."""
        weights: dict[str, Tensor] = dict(learner.model.named_parameters())
        if average:
            weights |= {name.removeprefix("model."): value for name, value in average.values.items()}
        full = whole_state(weights)
        if not accelerator.is_main_process:
            return
        kept = rebuilt(model.config, merged(full, lora) if lora.rank else full)
        CM3(kept, text, image_tokenizer).save_pretrained(out / "model")
        if adapter:
            save_adapter(full, adapter, out / "adapter")

    # 3. The loop: step, log, evaluate, save, sample.
    with (
        RunLog("lm", out, first, config.steps, accelerator) as log,
        checkpoints,
        LocalSGD(accelerator, called, config.local_sgd or 1, enabled=bool(apart)) as local,
        until_signalled() as asked,
    ):
        local.num_steps = first
        for problem in (f"{name}: {why}" for name, why in shards.bad.items()):
            log.say(f"left out: {problem}")
        if rows.too_long:
            log.say(f"left out: {rows.too_long} of {len(shards)} documents have more than row = {config.row} tokens")
        totals = torch.zeros(2, len(KINDS) + 1, device=device)
        clock, waited, tokens = time.perf_counter(), 0.0, torch.zeros(2, device=device)
        for step in range(first, config.steps):
            before = time.perf_counter()
            data = next(source)
            batches = [Batch(*(array.to(device, non_blocking=True) for array in part)) for part in data.parts]
            waited += time.perf_counter() - before
            weight = torch.stack([batch.weights[:, 1:].sum() for batch in batches]).sum()
            stuck = watch.in_a_row > config.most_skipped
            news = summed(torch.stack([weight, *(weight.new_tensor(x) for x in (asked[0], len(data.bad), stuck))]))
            if news[3]:  # on whichever process
                raise ValueError(
                    f"more than most_skipped = {config.most_skipped} steps in a row were skipped before "
                    f"step {step + 1} ({watch.skipped}): lower muon_lr and lr, or look at the "
                    "data"
                )
            scale = (world if not apart else 1) / (weight if apart else news[0])
            loss = torch.zeros((), device=device)
            for i, batch in enumerate(batches):
                with collecting(called, i == len(batches) - 1), autocast(config.precision, device):
                    losses = called(batch)
                    (losses.total * scale).backward()
                loss += losses.total.detach() * scale
                totals += torch.stack([losses.sums, losses.counts])
                tokens += torch.stack([batch.ids.new_tensor(batch.ids.numel()), (batch.ids == vocab.pad).sum()])
            norm = gathered(torch.nn.utils.clip_grad_norm_(trained, config.clip))
            mean, length = (loss, norm) if apart else (summed(loss) / world, norm)
            factor = rate(step, config.steps, config.schedule, config.warmup, config.decay, config.final)
            if why := watch.verdict(mean.item(), length.item()):
                log.write(
                    {
                        "step": step + 1,
                        "skipped": why,
                        "all losses": mean.item(),
                        "gradient": length.item(),
                        "digest": data.digest,
                    }
                )
            else:
                for one in optimizer:
                    for group in one.param_groups:
                        group["lr"] = group["peak"] * factor
                    one.step()
                if average:
                    average.update()
            for one in optimizer:
                one.zero_grad()
            local.step()
            run["position"] = list(data.position)
            run["bad_documents"] += int(news[2])
            log.show(step + 1)
            if run["bad_documents"] > max(10, config.max_bad * data.position.documents):
                raise ValueError(
                    f"{run['bad_documents']} of {data.position.documents} documents are damaged, more "
                    f"than max_bad = {config.max_bad:.0%}; the last: {data.bad[:3]}"
                )
            last = step + 1 == config.steps
            leaving = bool(news[1]) and not (apart and (step + 1) % config.local_sgd)
            if (step + 1) % config.log_every == 0 or last or leaving:
                seconds, clock = time.perf_counter() - clock, time.perf_counter()
                totals, tokens = summed(totals), summed(tokens)
                loss_by_kind = by_kind(*totals)
                rate_of_tokens = tokens[0].item() / seconds
                row = {
                    "step": step + 1,
                    "loss": loss_by_kind,
                    "gradient": length.item(),
                    "rate": factor,
                    "tokens_per_second": round(rate_of_tokens),
                    "padding": (tokens[1] / tokens[0]).item(),
                    "waiting": waited / seconds,
                    "documents": data.position.documents,
                    "digest": data.digest,
                    "flops": (step + 1) * flops,
                    "epoch": data.position.documents / len(shards),
                    "skipped_steps": sum(watch.skipped.values()),
                    **utilisation(model.config, config.row, rate_of_tokens / world, device),
                }
                log.write(row)
                words = ", ".join(f"{kind} {value:.2f}" for kind, value in loss_by_kind.items())
                log.show(step + 1, f"{words}, {rate_of_tokens:.0f} tokens/s")
                totals, tokens, waited = torch.zeros_like(totals), torch.zeros_like(tokens), 0.0
            if held_out and ((step + 1) % config.evaluate_every == 0 or last):
                if average:
                    average.swap()
                held_loss = evaluate(
                    called, held_out, config.evaluate_rows, micro, config.precision, device, rank, world
                )
                log.write({"step": step + 1, "held_out": held_loss})
                if average:
                    average.swap()
                clock = time.perf_counter()
            if (step + 1) % config.save_every == 0 or last or leaving:
                checkpoints.save(step + 1, parts)
            if last or leaving or (config.sample_every and (step + 1) % config.sample_every == 0):
                hand_out()
                if accelerator.is_main_process and config.prompts and not leaving:
                    draw_samples(config, out, step + 1, device)
                clock = time.perf_counter()
            if leaving:
                log.say(f"told to end: everything is saved after step {step + 1}; the same command goes on from there")
                break
    if first >= config.steps:  # it ended before, perhaps by a kill between the last checkpoint and the model
        hand_out()
    together(accelerator, True)  # nobody leaves before the model is written
    return out / "model"


def draw_samples(config: LMConfig, out: Path, step: int, device: torch.device) -> None:
    pipeline = CM3.from_pretrained(out / "model", device=device.type)
    drawn = [pipeline.generate(prompt, n=6, seed=0) for prompt in config.prompts]
    contact_sheet(list(config.prompts), drawn).save(out / f"samples-{step:06d}.png")


def main(
    out: Annotated[Path, typer.Option(help="folder of the run")] = Path("runs/lm"),
    config: Annotated[Path | None, typer.Option(help="TOML file")] = None,
    data: Annotated[str | None, typer.Option(help="folder of the token shards")] = None,
    dry_run: Annotated[bool, typer.Option(help="measure and say what the run will take, and end")] = False,
    find_batch: Annotated[bool, typer.Option(help="find the best micro_rows, and end")] = False,
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value")] = None,
) -> None:
    try:
        settings = configs.load(LMConfig, config, overrides)
        settings = replace(settings, data=data) if data else settings
        if dry_run or find_batch:
            plan_run(settings, find_batch)
        else:
            train(settings, out)
    except (OSError, ValueError) as error:
        raise SystemExit(f"lm: {error}") from None


if __name__ == "__main__":
    typer.run(main)
