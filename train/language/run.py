"""A run of the language model: what it holds, its steps, its figures, its state and the model that leaves it."""

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.local_sgd import LocalSGD
from torch import Tensor

from cm3.hf.model_folder import find_model
from cm3.pipeline import CM3
from cm3.tokens.vocab import Vocab
from train.documents.shards import Shards
from train.images.sheet import contact_sheet
from train.language.config import LMConfig
from train.language.held_out import by_kind, held_out_loss
from train.language.lora import merged, save_adapter
from train.language.loss import bridged_head
from train.language.objective import KINDS
from train.language.packing import Batch, Position, Rows, Step, Steps, load
from train.language.setup import Beside, beside, image_tokenizer_of, learner_of, optimizers_of, rebuilt
from train.runtime import config as configs
from train.runtime.checkpoint_state import ModelAndOptimizers, RandomState
from train.runtime.checkpoints import Checkpoints
from train.runtime.distributed import collecting, gathered, parallelized, summed, together, until_signalled, whole_state
from train.runtime.flops import step_flops, utilisation
from train.runtime.optim import EMA, StepSkipper, rate
from train.runtime.precision import autocast, uses_bf16
from train.runtime.run import open_run
from train.runtime.runlog import RunLog

SAME = ("data", "row", "batch_tokens", "window", "seed")  # what a run that goes on must agree in


def train(config: LMConfig, out: Path) -> Path:
    """The whole run; goes on from the newest checkpoint in OUT where there is one. Returns the model's folder."""
    with open_run(out, config.processes, config.trackers) as accelerator:
        run = LMRun(config, out, accelerator)
        with (
            RunLog("lm", out, run.first, config.steps, accelerator) as log,
            run.checkpoints,
            LocalSGD(accelerator, run.called, config.local_sgd or 1, enabled=run.apart) as local,
            until_signalled() as asked,
        ):
            local.num_steps = run.first
            run.say_what_is_left_out(log)
            if config.start and (find_model(config.start) / "scorer").is_dir():
                log.say(f"the scorer stays that of {config.start}: train.scorer trains one on {config.data}")
            source = load(run.steps(), config.steps, config.workers, run.device.type == "cuda")
            for step in range(run.first, config.steps):
                before = time.perf_counter()
                data = next(source)
                run.waited += time.perf_counter() - before
                taken = run.step(step, data, bool(asked[0]))
                if taken.skipped:
                    log.write(taken.why_skipped(step + 1))
                local.step()
                log.show(step + 1)
                last = step + 1 == config.steps
                leaving = taken.leaving and not (run.apart and (step + 1) % config.local_sgd)
                if (step + 1) % config.log_every == 0 or last or leaving:
                    run.report(step + 1, taken, log)
                if config.evaluate_every and ((step + 1) % config.evaluate_every == 0 or last):
                    log.write({"step": step + 1, "held_out_loss": run.held_out()})
                if (step + 1) % config.save_every == 0 or last or leaving:
                    run.checkpoints.save(step + 1, run.parts)
                if last or leaving or (config.sample_every and (step + 1) % config.sample_every == 0):
                    run.export()
                    if accelerator.is_main_process and config.prompts and not leaving:
                        run.draw_samples(step + 1)
                if leaving:
                    log.say(
                        f"told to end: everything is saved after step {step + 1}; the same command goes on from there"
                    )
                    break
        if run.first >= config.steps:  # it ended before, perhaps by a kill between the last checkpoint and the model
            run.export()
        together(accelerator, True)  # nobody leaves before the model is written
    return out / "model"


class Taken(NamedTuple):
    """A step that was taken: mean loss, length of the gradient and factor of the rates; why it changed nothing, or "";
    whether a process was told to end; and its data."""

    loss: float
    gradient: float
    factor: float
    skipped: str
    leaving: bool
    data: Step

    def why_skipped(self, step: int) -> dict[str, Any]:
        return {
            "step": step,
            "skipped": self.skipped,
            "total_loss": self.loss,
            "grad_norm": self.gradient,
            "digest": self.data.digest,
        }


@dataclass
class Since:
    """What has been counted since the last report, on this process."""

    losses: Tensor  # [2, kinds]: sums and counts
    tokens: Tensor  # [2]: all, and padding among them
    clock: float


class LMRun:
    """Data, model, optimisers and where they stand; from the newest checkpoint in OUT where there is one.

    Args:
        config: of the run.
        out: folder of the run.
        accelerator: its processes.

    Attributes:
        first: the step to begin with.
        apart: whether the processes train apart (LocalSGD).
        waited: seconds that this process has waited for data since the last report.

    Raises:
        ValueError: a config that does not fit the data, or a run on other data in OUT.
    """

    def __init__(self, config: LMConfig, out: Path, accelerator: Accelerator):
        self.config, self.out, self.accelerator = config, out, accelerator
        self.device, self.rank, self.world = (
            accelerator.device,
            accelerator.process_index,
            accelerator.num_processes,
        )
        self.per_rank = config.rows(self.world)
        self.micro = config.micro_rows or self.per_rank
        self.apart = bool(config.local_sgd) and self.world > 1
        self._open_data()
        self._open_model()
        self._restore()
        self.since, self.waited = self._nothing_yet(), 0.0

    def _open_data(self) -> None:
        config = self.config
        self.shards = Shards(config.data, verify=config.verify, max_bad=config.max_bad)
        self.image_tokenizer = image_tokenizer_of(config, self.shards.meta)
        self.text_tokenizer = self.shards.text_tokenizer()
        self.vocab: Vocab = self.shards.vocab()
        self.rows = Rows(self.shards, self.vocab, config.objective, config.row, config.seed, config.window)
        self.held_out_rows = None
        if config.evaluate_every:
            held = Shards(config.data, "held_out", config.verify, config.max_bad)
            self.held_out_rows = Rows(held, self.vocab, config.objective.plain(), config.row, 0, len(held))

    def _open_model(self) -> None:
        config = self.config
        self.learner, self.adapter = learner_of(config, self.shards.meta, self.image_tokenizer, self.device)
        bf16 = uses_bf16(config.precision, self.device)
        self.called = parallelized(self.learner, self.accelerator, config.parallel, bf16)
        self.optimizer = optimizers_of(self.learner, config, self.device)
        self.flops = step_flops(self.learner.model.config, config.row, config.batch_tokens, self.optimizer)
        named = [(name, p) for name, p in self.learner.named_parameters() if p.requires_grad]
        self.trained = [parameter for _, parameter in named]
        self.average = EMA(named, config.ema) if config.ema else None
        self.skipper = StepSkipper(config.spike)

    def _restore(self) -> None:
        config = self.config
        self.state: dict[str, Any] = {
            "position": list(Position()),
            "data": self.shards.fingerprint(),
            **{key: getattr(config, key) for key in SAME if key != "data"},
            "bad_documents": 0,
        }
        weights = f"apart@{self.rank} of {self.world}" if self.apart else "lm"
        self.parts: dict[str, Any] = {
            weights: ModelAndOptimizers(self.learner, self.optimizer),
            "random": RandomState(),
            "watch": self.skipper,
            "run": self.state,
        }
        if self.average:
            self.parts["average"] = self.average.values
        self.checkpoints = Checkpoints(
            self.out / "checkpoints", config.keep, config.async_save, config.ignore_save_errors
        )
        expected = {key: self.state[key] for key in SAME}
        wanted = [
            [{key: value for key, value in group.items() if key != "params"} for group in one.param_groups]
            for one in self.optimizer
        ]
        try:
            self.first = self.checkpoints.load(self.parts) or 0
        except ValueError as error:
            hint = f"; with local_sgd the number of processes, now {self.world}, must stay the same"
            raise ValueError(f"{error}{hint if self.apart else ''}") from error
        # Rates and decays are this command's, not the old one's.
        for one, settings in zip(self.optimizer, wanted, strict=True):
            for group, fields in zip(one.param_groups, settings, strict=True):
                group.update(fields)
        self.state = self.parts["run"]
        if other := configs.changes(self.state, expected):
            raise ValueError(
                f"{self.out} holds a run on other data: {other}; take another --out, or set start={self.out}/model"
            )
        if self.accelerator.is_main_process:
            self.out.mkdir(parents=True, exist_ok=True)
            configs.save(config, self.out / "config.json")

    def steps(self) -> Steps:
        """The data of the steps that are left."""
        position = Position(*self.state["position"])
        return Steps(self.rows, self.per_rank * self.world, self.micro, self.first, position, self.rank, self.world)

    @cached_property
    def beside(self) -> Beside:
        """What is saved with the weights."""
        return beside(self.config, self.shards)

    def say_what_is_left_out(self, log: RunLog) -> None:
        for name, why in self.shards.bad.items():
            log.say(f"left out: {name}: {why}")
        if self.rows.too_long:
            log.say(
                f"left out: {self.rows.too_long} of {len(self.shards)} documents have more than "
                f"row = {self.config.row} tokens"
            )

    def step(self, step: int, data: Step, asked: bool) -> Taken:
        """One step of the optimisers. asked: whether this process was told to end.

        Raises ValueError, in every process, after too many skipped steps or bad documents."""
        config = self.config
        if config.calibration and step >= (calibrated := round((1 - config.calibration) * config.steps)):
            self.learner.compare_all()
            if step == calibrated:
                self.skipper.forget()  # with more rivals the loss leaps
        batches = [part.to(self.device, non_blocking=True) for part in data.parts]
        weight = torch.stack([batch.weights[:, 1:].sum() for batch in batches]).sum()
        stuck = self.skipper.in_a_row > config.max_skipped_steps
        news = summed(torch.stack([weight, *(weight.new_tensor(x) for x in (asked, len(data.bad), stuck))]))
        if news[3]:  # on whichever process
            raise ValueError(
                f"more than max_skipped_steps = {config.max_skipped_steps} steps in a row were skipped before "
                f"step {step + 1} ({self.skipper.skipped}): lower muon_lr and lr, or look at the data"
            )
        scale = (self.world if not self.apart else 1) / (weight if self.apart else news[0])
        loss, norm = self._backward(batches, scale)
        mean, length = (loss, norm) if self.apart else (summed(loss) / self.world, norm)
        factor = rate(step, config.steps, config.schedule, config.warmup, config.decay, config.final)
        why = self.skipper.verdict(mean.item(), length.item())
        for one in self.optimizer:
            if not why:
                for group in one.param_groups:
                    group["lr"] = group["peak"] * factor
                one.step()
            one.zero_grad()
        if self.average and not why:
            self.average.update()
        self.state["position"] = list(data.position)
        self.state["bad_documents"] += int(news[2])
        bad = self.state["bad_documents"]
        if bad > max(10, config.max_bad * data.position.documents):
            raise ValueError(
                f"{bad} of {data.position.documents} documents are damaged, more than "
                f"max_bad = {config.max_bad:.0%}; the last: {data.bad[:3]}"
            )
        return Taken(mean.item(), length.item(), factor, why, bool(news[1]), data)

    def _backward(self, batches: list[Batch], scale: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of all parts of a step, clipped. Returns the loss and the length of the gradient."""
        loss = torch.zeros((), device=self.device)
        for i, batch in enumerate(batches):
            with collecting(self.called, i == len(batches) - 1), autocast(self.config.precision, self.device):
                losses = self.called(batch)
                (losses.total * scale).backward()
            loss += losses.total.detach() * scale
            self.since.losses += torch.stack([losses.sums, losses.counts])
            padding = (batch.ids == self.vocab.pad).sum()
            self.since.tokens += torch.stack([batch.ids.new_tensor(batch.ids.numel()), padding])
        return loss, gathered(torch.nn.utils.clip_grad_norm_(self.trained, self.config.clip))

    def _nothing_yet(self) -> Since:
        zeros = torch.zeros(2, len(KINDS) + 1, device=self.device)
        return Since(zeros, torch.zeros(2, device=self.device), time.perf_counter())

    def report(self, step: int, taken: Taken, log: RunLog) -> None:
        """A row of the log, of all processes, on what there was since the last one."""
        seconds = time.perf_counter() - self.since.clock
        losses, tokens = by_kind(*summed(self.since.losses)), summed(self.since.tokens)
        speed, position = tokens[0].item() / seconds, taken.data.position
        log.write(
            {
                "step": step,
                "loss": losses,
                "grad_norm": taken.gradient,
                "lr": self.config.lr * taken.factor,
                "tokens_per_second": round(speed),
                "padding_fraction": (tokens[1] / tokens[0]).item(),
                "data_wait": self.waited / seconds,
                "documents": position.documents,
                "digest": taken.data.digest,
                "flops": step * self.flops,
                "epoch": position.documents / len(self.shards),
                "skipped_steps": sum(self.skipper.skipped.values()),
                **utilisation(self.learner.model.config, self.config.row, speed / self.world, self.device),
            }
        )
        words = ", ".join(f"{kind} {value:.2f}" for kind, value in losses.items())
        log.show(step, f"{words}, {speed:.0f} tokens/s")
        self.since, self.waited = self._nothing_yet(), 0.0

    def held_out(self) -> dict[str, float]:
        """Loss on the held-out split, of the averaged weights where there are any."""
        assert self.held_out_rows is not None
        if self.average:
            self.average.swap()
        found = held_out_loss(
            self.called,
            self.held_out_rows,
            self.config.evaluate_rows,
            self.micro,
            self.config.precision,
            self.device,
            self.rank,
            self.world,
        )
        if self.average:
            self.average.swap()
        self.since.clock = time.perf_counter()
        return found

    def export(self) -> None:
        """Write OUT/model as something to use: averaged where that is asked for, no adapters, no shards."""
        model, lora = self.learner.model, self.config.lora
        weights: dict[str, Tensor] = dict(model.named_parameters())
        if self.average:
            weights |= {name.removeprefix("model."): value for name, value in self.average.values.items()}
        if self.learner.bridge is not None:
            weights["bridge"] = self.average.values["bridge"] if self.average else self.learner.bridge
        full = whole_state(weights)
        if "bridge" in full:
            parts = full["lm_head.weight"], full["model.embed_tokens.weight"], full.pop("bridge")
            full["lm_head.weight"] = bridged_head(*parts)
        if self.accelerator.is_main_process:
            kept = rebuilt(model.config, merged(full, lora) if lora.rank else full)
            known, scorer = self.beside
            model = CM3(kept, self.text_tokenizer, self.image_tokenizer, scorer, known_words=known)
            model.save_pretrained(self.out / "model")
            if self.adapter:
                save_adapter(full, self.adapter, self.out / "adapter")
        self.since.clock = time.perf_counter()

    def draw_samples(self, step: int) -> None:
        """A sheet of drawings by the model in OUT."""
        pipeline = CM3.from_pretrained(self.out / "model", device=self.device.type)
        drawn = [pipeline.generate(prompt, n=6, seed=0) for prompt in self.config.prompts]
        contact_sheet(list(self.config.prompts), drawn).save(self.out / f"samples-{step:06d}.png")
        self.since.clock = time.perf_counter()
