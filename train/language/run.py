"""A training run of the language model: its data, model, optimizers, checkpoints and log."""

import time
from functools import cached_property
from pathlib import Path
from typing import Any

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
from train.language.packing import Batch, PackedSequences, Position, Step, Steps, load
from train.language.progress import Counters, StepResult
from train.language.setup import ModelExtras, image_tokenizer_of, learner_of, model_extras, optimizers_of, rebuilt
from train.runtime import config as configs
from train.runtime.checkpoint_state import ModelAndOptimizers, RandomState
from train.runtime.distributed import collecting, gathered, parallelized, summed, together, until_signalled, whole_state
from train.runtime.flops import step_flops, utilisation
from train.runtime.optim import EMA, StepSkipper, lr_factor
from train.runtime.precision import autocast, uses_bf16
from train.runtime.run import checkpoints_of, open_run
from train.runtime.runlog import RunLog


def train(config: LMConfig, out: Path) -> Path:
    """Train, from the newest checkpoint in OUT where there is one.

    Args:
        config: of the run.
        out: folder of the run.

    Returns:
        The folder of the model.

    Raises:
        ValueError: as LMRun and LMRun.step.
        OSError: a checkpoint cannot be written.
    """
    with open_run(out, config.distributed.processes, config.log.trackers) as accelerator:
        run = LMRun(config, out, accelerator)
        local_steps = config.distributed.local_sgd_steps
        with (
            RunLog("lm", out, run.first, config.steps, accelerator) as log,
            run.checkpoints,
            LocalSGD(accelerator, run.called, local_steps or 1, enabled=run.local_sgd) as local,
            until_signalled() as terminate,
        ):
            local.num_steps = run.first
            run.log_left_out(log)
            if config.start and (find_model(config.start) / "scorer").is_dir():
                log.say(f"the scorer stays that of {config.start}: train.scorer trains one on {config.data.folder}")
            source = load(run.steps(), config.steps, config.data.workers, run.device.type == "cuda")
            for step in range(run.first, config.steps):
                before = time.perf_counter()
                data = next(source)
                run.data_wait += time.perf_counter() - before
                result = run.step(step, data, bool(terminate[0]))
                if result.skipped:
                    log.write(result.why_skipped(step + 1))
                local.step()
                log.show(step + 1)
                last = step + 1 == config.steps
                ending = result.terminate and not (run.local_sgd and (step + 1) % local_steps)
                if (step + 1) % config.log.every == 0 or last or ending:
                    run.report(step + 1, result, log)
                if config.eval.every and ((step + 1) % config.eval.every == 0 or last):
                    log.write({"step": step + 1, "held_out_loss": run.held_out()})
                if (step + 1) % config.checkpoint.every == 0 or last or ending:
                    run.checkpoints.save(step + 1, run.parts)
                if last or ending or (config.samples.every and (step + 1) % config.samples.every == 0):
                    run.export()
                    if accelerator.is_main_process and config.samples.prompts and not ending:
                        run.draw_samples(step + 1)
                if ending:
                    log.say(f"terminated: all is saved after step {step + 1}; the same command resumes there")
                    break
        if run.first >= config.steps:  # it had ended, perhaps by a kill between the last checkpoint and the model
            run.export()
        together(accelerator, True)  # no process leaves before the model is written
    return out / "model"


class LMRun:
    """Data, model, optimizers and their state, from the newest checkpoint in OUT where there is one.

    Args:
        config: of the run.
        out: folder of the run.
        accelerator: its processes.

    Attributes:
        first: the step to start with.
        local_sgd: whether the processes train apart (LocalSGD).
        data_wait: seconds that this process has waited for data since the last report.

    Raises:
        ValueError: the configuration does not fit the data, or OUT holds a run on other data.
    """

    def __init__(self, config: LMConfig, out: Path, accelerator: Accelerator):
        self.config, self.out, self.accelerator = config, out, accelerator
        self.device, self.rank, self.world = (
            accelerator.device,
            accelerator.process_index,
            accelerator.num_processes,
        )
        self.per_rank = config.sequences(self.world)
        self.micro = config.micro_batch_size or self.per_rank
        self.local_sgd = bool(config.distributed.local_sgd_steps) and self.world > 1
        self._open_data()
        self._open_model()
        self._restore()
        self.counters, self.data_wait = self._new_counters(), 0.0

    def _open_data(self) -> None:
        config, data = self.config, self.config.data
        self.shards = Shards(data.folder, verify=data.verify_hashes, max_bad=data.max_bad_fraction)
        self.image_tokenizer = image_tokenizer_of(config, self.shards)
        self.text_tokenizer = self.shards.text_tokenizer()
        self.vocab: Vocab = self.shards.vocab()
        self.sequences = PackedSequences(
            self.shards, self.vocab, config.objective, data.seq_len, config.seed, data.packing_window
        )
        self.held_out_sequences = None
        if config.eval.every:
            held = Shards(data.folder, "held_out", data.verify_hashes, data.max_bad_fraction)
            plain = config.objective.plain()
            self.held_out_sequences = PackedSequences(held, self.vocab, plain, data.seq_len, 0, len(held))

    def _open_model(self) -> None:
        config = self.config
        self.learner, self.adapter = learner_of(config, self.shards.meta, self.image_tokenizer, self.device)
        bf16 = uses_bf16(config.precision, self.device)
        self.called = parallelized(self.learner, self.accelerator, config.distributed.strategy, bf16)
        self.optimizers = optimizers_of(self.learner, config, self.device)
        self.flops = step_flops(self.learner.model.config, config.data.seq_len, config.batch_tokens, self.optimizers)
        named = [(name, p) for name, p in self.learner.named_parameters() if p.requires_grad]
        self.trained = [parameter for _, parameter in named]
        self.average = EMA(named, config.optim.ema_decay) if config.optim.ema_decay else None
        self.skipper = StepSkipper(config.optim.spike_sigmas)

    def _restore(self) -> None:
        config = self.config
        expected = {  # a run can only be resumed where these agree
            "data": self.shards.fingerprint(),
            "data.seq_len": config.data.seq_len,
            "data.packing_window": config.data.packing_window,
            "batch_tokens": config.batch_tokens,
            "seed": config.seed,
        }
        self.state: dict[str, Any] = {"position": list(Position()), "bad_documents": 0, "same": dict(expected)}
        weights = f"apart@{self.rank} of {self.world}" if self.local_sgd else "lm"
        self.parts: dict[str, Any] = {
            weights: ModelAndOptimizers(self.learner, self.optimizers),
            "random": RandomState(),
            "skipper": self.skipper,
            "run": self.state,
        }
        if self.average:
            self.parts["average"] = self.average.values
        self.checkpoints = checkpoints_of(self.out, config.checkpoint)
        wanted = [
            [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
            for optimizer in self.optimizers
        ]
        try:
            self.first = self.checkpoints.load(self.parts) or 0
        except ValueError as error:
            hint = f"; with local_sgd_steps the number of processes, now {self.world}, must stay the same"
            raise ValueError(f"{error}{hint if self.local_sgd else ''}") from error
        # Learning rates and weight decay are those of this command, not of the checkpoint.
        for optimizer, settings in zip(self.optimizers, wanted, strict=True):
            for group, fields in zip(optimizer.param_groups, settings, strict=True):
                group.update(fields)
        self.state = self.parts["run"]
        if other := configs.changes(self.state["same"], expected):
            raise ValueError(
                f"{self.out} holds a run on other data: {other}; take another --out, or set start={self.out}/model"
            )
        if self.accelerator.is_main_process:
            self.out.mkdir(parents=True, exist_ok=True)
            configs.save(config, self.out / "config.json")

    def steps(self) -> Steps:
        """Return the data of the remaining steps."""
        position = Position(*self.state["position"])
        per_step = self.per_rank * self.world
        return Steps(self.sequences, per_step, self.micro, self.first, position, self.rank, self.world)

    @cached_property
    def extras(self) -> ModelExtras:
        """What the model folder holds besides the weights."""
        return model_extras(self.config, self.shards)

    def log_left_out(self, log: RunLog) -> None:
        """Say which shards and documents are not trained on."""
        for name, why in self.shards.bad.items():
            log.say(f"left out: {name}: {why}")
        if self.sequences.too_long:
            log.say(
                f"left out: {self.sequences.too_long} of {len(self.shards)} documents have more than "
                f"data.seq_len = {self.config.data.seq_len} tokens"
            )

    def step(self, step: int, data: Step, terminate: bool) -> StepResult:
        """Take one step.

        Args:
            step: its number.
            data: of this process.
            terminate: whether this process was asked to end.

        Raises:
            ValueError: too many skipped steps in a row, or too many bad documents; in every process.
        """
        config, optim = self.config, self.config.optim
        self._widen_softmax(step)
        batches = [part.to(self.device, non_blocking=True) for part in data.parts]
        weight = torch.stack([batch.weights[:, 1:].sum() for batch in batches]).sum()
        stuck = self.skipper.in_a_row > optim.max_skipped_steps
        news = summed(torch.stack([weight, *(weight.new_tensor(x) for x in (terminate, len(data.bad), stuck))]))
        if news[3]:  # on whichever process
            raise ValueError(
                f"more than optim.max_skipped_steps = {optim.max_skipped_steps} steps in a row were skipped before "
                f"step {step + 1} ({self.skipper.skipped}): lower optim.muon_lr and optim.lr, or look at the data"
            )
        scale = (1 if self.local_sgd else self.world) / (weight if self.local_sgd else news[0])
        loss, norm = self._backward(batches, scale)
        mean = loss if self.local_sgd else summed(loss) / self.world
        factor = lr_factor(
            step, config.steps, optim.schedule, optim.warmup_steps, optim.decay_fraction, optim.final_lr_fraction
        )
        why = self.skipper.verdict(mean.item(), norm.item())
        for optimizer in self.optimizers:
            if not why:
                for group in optimizer.param_groups:
                    group["lr"] = group["peak"] * factor
                optimizer.step()
            optimizer.zero_grad()
        if self.average and not why:
            self.average.update()
        self.state["position"] = list(data.position)
        self.state["bad_documents"] += int(news[2])
        bad = self.state["bad_documents"]
        if bad > max(10, config.data.max_bad_fraction * data.position.documents):
            raise ValueError(
                f"{bad} of {data.position.documents} documents are damaged, more than "
                f"data.max_bad_fraction = {config.data.max_bad_fraction:.0%}; the last: {data.bad[:3]}"
            )
        return StepResult(mean.item(), norm.item(), factor, why, bool(news[1]), data)

    def _widen_softmax(self, step: int) -> None:
        """Take the softmax over all ids in the last share of the steps, where the configuration asks for that."""
        share = self.config.loss.full_softmax_fraction
        if share and step >= (first := round((1 - share) * self.config.steps)):
            self.learner.compare_all()
            if step == first:
                self.skipper.forget()  # the loss jumps, since more ids compete

    def _backward(self, batches: list[Batch], scale: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the clipped gradients of a step's micro-batches. Return the loss and the gradient norm."""
        loss = torch.zeros((), device=self.device)
        for i, batch in enumerate(batches):
            with collecting(self.called, i == len(batches) - 1), autocast(self.config.precision, self.device):
                losses = self.called(batch)
                (losses.total * scale).backward()
            loss += losses.total.detach() * scale
            self.counters.losses += torch.stack([losses.sums, losses.counts])
            padding = (batch.ids == self.vocab.pad).sum()
            self.counters.tokens += torch.stack([batch.ids.new_tensor(batch.ids.numel()), padding])
        return loss, gathered(torch.nn.utils.clip_grad_norm_(self.trained, self.config.optim.grad_clip))

    def _new_counters(self) -> Counters:
        zeros = torch.zeros(2, len(KINDS) + 1, device=self.device)
        return Counters(zeros, torch.zeros(2, device=self.device), time.perf_counter())

    def report(self, step: int, result: StepResult, log: RunLog) -> None:
        """Write a row of the log: what all processes counted since the last one."""
        seconds = time.perf_counter() - self.counters.clock
        losses, tokens = by_kind(*summed(self.counters.losses)), summed(self.counters.tokens)
        speed, position = tokens[0].item() / seconds, result.data.position
        seq_len = self.config.data.seq_len
        log.write(
            {
                "step": step,
                "loss": losses,
                "grad_norm": result.grad_norm,
                "lr": self.config.optim.lr * result.lr_factor,
                "tokens_per_second": round(speed),
                "padding_fraction": (tokens[1] / tokens[0]).item(),
                "data_wait": self.data_wait / seconds,
                "documents": position.documents,
                "digest": result.data.digest,
                "flops": step * self.flops,
                "epoch": position.documents / len(self.shards),
                "skipped_steps": sum(self.skipper.skipped.values()),
                **utilisation(self.learner.model.config, seq_len, speed / self.world, self.device),
            }
        )
        words = ", ".join(f"{kind} {value:.2f}" for kind, value in losses.items())
        log.show(step, f"{words}, {speed:.0f} tokens/s")
        self.counters, self.data_wait = self._new_counters(), 0.0

    def held_out(self) -> dict[str, float]:
        """Return the loss on the held-out split, of the averaged weights where there are any."""
        assert self.held_out_sequences is not None
        if self.average:
            self.average.swap()
        found = held_out_loss(
            self.called,
            self.held_out_sequences,
            self.config.eval.sequences,
            self.micro,
            self.config.precision,
            self.device,
            self.rank,
            self.world,
        )
        if self.average:
            self.average.swap()
        self.counters.clock = time.perf_counter()
        return found

    def export(self) -> None:
        """Write OUT/model: averaged weights where there are any, adapters merged, no sharding."""
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
            known, scorer = self.extras
            pipeline = CM3(kept, self.text_tokenizer, self.image_tokenizer, scorer, known_words=known)
            pipeline.save_pretrained(self.out / "model")
            if self.adapter:
                save_adapter(full, self.adapter, self.out / "adapter")
        self.counters.clock = time.perf_counter()

    def draw_samples(self, step: int) -> None:
        """Write a contact sheet of images that the model in OUT generates."""
        pipeline, prompts = (
            CM3.from_pretrained(self.out / "model", device=self.device.type),
            self.config.samples.prompts,
        )
        images = [pipeline.generate(prompt, n=6, seed=0) for prompt in prompts]
        contact_sheet(list(prompts), images).save(self.out / f"samples-{step:06d}.png")
        self.counters.clock = time.perf_counter()
