"""TRL's GRPOTrainer with our sampling, our log-probabilities and a resume that restores everything.

What differs from TRL 1.16:
- replies are sampled from one shared prefill per prompt (`rollout_func`), where TRL repeats every prompt;
- sampling, old, new and reference log-probabilities all use the same `TokenMask`, so the ratio starts at 1;
- the random state of a rollout depends on (seed, step) only, and the saved state is strict, so a resumed run continues
  as if it had not been interrupted; nothing is pickled;
- no telemetry, no model card, no lookup outside the given folders.
- with `credit` by token, action tokens have advantages of their own (`trainer/credit.py`).
Whole replies' advantages, clipping, the KL term (k3) and the loss are TRL's.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers.trainer_callback import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from roboalign.sdk.errors import BundleError
from roboalign.trainer.credit import token_advantages
from roboalign.trainer.folders import move_into_place, temporary_dir
from roboalign.trainer.inputs import PromptInputs
from roboalign.trainer.judge import Judge, Verdict
from roboalign.trainer.measure import distinct_share, finite_error
from roboalign.trainer.resume import read_optimizer, restore_weights, unique_tensors, write_optimizer
from roboalign.trainer.rollout import TokenMask, sample_replies

__all__ = ["AlignTrainer"]

_TRAINER_STATE = "trainer_state.json"


class AlignTrainer(GRPOTrainer):
    """Aligns a backbone on think-then-act prompts."""

    def __init__(
        self,
        *,
        judge: Judge,
        rows: Sequence[int],
        mask: TokenMask,
        args: GRPOConfig,
        rollout: str = "own",
        credit: str = "reply",
        callbacks: Sequence[Any] = (),
    ) -> None:
        """Prepares a run.

        Args:
            judge: the frames to train on, and the reward; the backbone's model must come from a saved folder, which
                TRL reads again for the reference (KL) model.
            rows: frame of each prompt, in the order of training.
            mask: what may be sampled.
            args: TRL's settings.
            rollout: who samples, see `AlignConfig.rollout`.
            credit: who is paid, see `AlignConfig.credit`.
            callbacks: transformers trainer callbacks.
        """
        backbone = judge.prompts.backbone
        self._backbone = backbone
        self._judge, self._prompts, self._mask = judge, judge.prompts, mask
        self._credit = credit
        self._verdict: Verdict | None = None
        self._rows: torch.Tensor | None = None
        self._log_probs: torch.Tensor | None = None
        self._buffered_inputs: list[dict[str, Any]] | None = None
        os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
        dataset = Dataset.from_dict({"prompt": [f"frame {row}" for row in rows], "row": list(rows)})
        super().__init__(
            model=backbone.model,
            reward_funcs=[self._score],
            args=args,
            train_dataset=dataset,
            processing_class=backbone.tokenizer,
            callbacks=list(callbacks),
            rollout_func=lambda _prompts, _trainer: self._sample() if rollout == "own" else self._generate_by_trl(),
        )
        self.remove_callback(PrinterCallback)

    def _send_telemetry(self) -> None:
        """Sends nothing: TRL would report the trainer's class name."""

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["prompt", "row"]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._rows = torch.tensor([example["row"] for example in inputs])
        seed = torch.Generator().manual_seed(self.args.seed * 1_000_003 + self.state.global_step)
        torch.manual_seed(int(torch.randint(2**62, (1,), generator=seed)))
        output = super()._generate_and_score_completions(inputs)
        output["rows"] = self._rows
        if self._credit == "token":
            assert self._verdict is not None
            completion_ids, mask = output["completion_ids"], output["completion_mask"]
            output["advantages"] = token_advantages(
                output["advantages"],
                [ids[keep.bool()].tolist() for ids, keep in zip(completion_ids, mask, strict=True)],
                self._verdict.shares,
                self._prompts.tokens,
                group=self.num_generations,
                length=completion_ids.shape[1],
            ).to(completion_ids.device)
        return output

    def _sample(self) -> dict[str, Any]:
        assert self._rows is not None
        started = time.perf_counter()
        times = self.num_generations
        inputs = self._prompts.inputs(self._rows[::times].tolist())
        replies = sample_replies(
            self._backbone,
            inputs,
            self._mask,
            num_samples=times,
            max_tokens=self.max_completion_length,
            eos_id=self._prompts.tokens.eos,
            temperature=self.temperature,
        )
        self._log_rollout(started, replies.token_ids)
        return {
            "prompt_ids": [row for row in _unpadded(inputs) for _ in range(times)],
            "completion_ids": replies.token_ids,
            "logprobs": replies.log_probs,
        }

    def _generate_by_trl(self) -> dict[str, Any]:
        """Samples by TRL's own path: every prompt is repeated for each of its samples, or handed to vLLM."""
        assert self._rows is not None
        started = time.perf_counter()
        rows = self._rows.tolist()
        inputs = self._prompts.inputs(rows)
        prompt_ids = _unpadded(inputs)
        images = [[Image.fromarray(self._prompts.table.images[row])] for row in rows]
        ids, log_probs = self._generate_single_turn(prompt_ids, images, dict(inputs.extra), self.num_generations)
        self._log_rollout(started, ids)
        return {"prompt_ids": prompt_ids, "completion_ids": ids, "logprobs": log_probs}

    def _log_rollout(self, started: float, completion_ids: list[list[int]]) -> None:
        seconds = time.perf_counter() - started
        self._log_metric("generate_s", seconds)
        self._log_metric("rollout_tokens_s", sum(map(len, completion_ids)) / seconds)

    def _score(self, completion_ids: list[list[int]], row: list[int], log_metric: Any, **_unused: Any) -> list[float]:
        started = time.perf_counter()
        verdict = self._verdict = self._judge.judge(row, completion_ids)
        scores = verdict.scores
        parts: dict[str, list[float]] = {
            "well_formed": [s.is_well_formed for s in scores],
            "decodable": [s.is_decodable for s in scores],
            "prefix": [s.prefix for s in scores],
            "first_token": [s.is_first_right for s in scores],
            "error": [finite_error(s) for s in scores],
            "thought_tokens": [len(s.thought_ids) for s in scores],
            "outcome": [s.outcome for s in scores if s.outcome is not None],
        }
        for name, values in parts.items():
            if values:
                log_metric(f"sampled_{name}", sum(values) / len(values))
        log_metric("sampled_distinct", distinct_share(scores))
        log_metric("score_s", time.perf_counter() - started)
        return verdict.rewards

    def _get_per_token_logps_and_entropies(
        self,
        model: torch.nn.Module,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **_unused: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        assert self._rows is not None
        assert len(self._rows) == len(input_ids)
        batch_size = batch_size or len(input_ids)
        chosen, entropies = [], []
        for start in range(0, len(input_ids), batch_size):
            part = slice(start, start + batch_size)
            mask = attention_mask[part, -logits_to_keep:]
            length = self._longest(mask)
            completion_ids = input_ids[part, -logits_to_keep:][:, :length]
            log_probs = self._distributions(model, self._rows[part], completion_ids, mask[:, :length])
            padding = (0, logits_to_keep - length)
            chosen.append(F.pad(log_probs.gather(2, completion_ids[:, :, None])[:, :, 0], padding))
            if compute_entropy:
                entropies.append(F.pad(torch.special.entr(log_probs.detach().exp()).sum(dim=2), padding))
        # Padding behind the end may stand at a forbidden place; TRL multiplies it by 0, and 0 * inf would be nan.
        completion_mask = attention_mask[:, -logits_to_keep:].bool()
        self._log_probs = torch.cat(chosen).masked_fill(~completion_mask, 0.0)
        return self._log_probs, torch.cat(entropies) if compute_entropy else None, None

    def _longest(self, completion_mask: torch.Tensor) -> int:
        """Returns the places to compute for a batch: TRL pads to the longest reply of the whole rollout."""
        return int(completion_mask.sum(dim=1).max())

    def _distributions(
        self, model: torch.nn.Module, rows: torch.Tensor, completion_ids: torch.Tensor, completion_mask: torch.Tensor
    ) -> torch.Tensor:
        """Returns float[B, C, V] log-distributions of the places of a batch of replies."""
        unique, back = rows.unique(return_inverse=True)
        prompts, index = self._prompts.inputs(unique.tolist()), back.to(completion_ids.device)
        with self.accelerator.autocast():
            logits = self._backbone.reply_logits(prompts, index, completion_ids, completion_mask, module=model)
        return self._mask.log_probs(logits, completion_ids, temperature=self.temperature)

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if self._buffered_inputs is before or self._buffered_inputs is None:
            return inputs
        count = self.args.gradient_accumulation_steps
        starts = range(0, len(self._buffered_inputs), count)
        self._buffered_inputs = [
            batch for start in starts for batch in _group_by_prompt(self._buffered_inputs[start : start + count])
        ]
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        self._rows = inputs["rows"]
        loss = super()._compute_loss(model, inputs)
        self._metrics["train"]["micro_batch_tokens"].append(float(inputs["completion_mask"].sum()))
        sampled = inputs.get("sampling_per_token_logps")  # transformers' generate gives none
        if self._step % self.args.steps_per_generation == 0 and self._log_probs is not None and sampled is not None:
            gap = (self._log_probs.detach() - sampled) * inputs["completion_mask"]
            self._metrics["train"]["sampling_gap"].append(float(gap.abs().max()))
        return loss

    def save_state(self, folder: Path, extra: Mapping[str, Any]) -> None:
        """Writes all that a resume needs to `folder`: weights, optimizer, schedule, step, and `extra` (JSON)."""
        temporary = temporary_dir(folder)
        save_file(unique_tensors(self.accelerator.unwrap_model(self.model)), temporary / "model.safetensors")
        write_optimizer(temporary, self.optimizer)
        schedule = {name: value for name, value in self.lr_scheduler.state_dict().items() if name != "lr_lambdas"}
        (temporary / "scheduler.json").write_text(json.dumps(schedule), encoding="utf-8")
        (temporary / "extra.json").write_text(json.dumps(dict(extra)), encoding="utf-8")
        self.state.save_to_json(str(temporary / _TRAINER_STATE))
        move_into_place(temporary, folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        # transformers restores the tensors whose names match and logs the rest; here all must be there.
        folder = Path(resume_from_checkpoint)
        try:
            weights = load_file(folder / "model.safetensors")
        except (OSError, ValueError, SafetensorError) as err:
            raise BundleError(f"the state in {folder} is damaged ({err}); delete the folder to start again") from err
        restore_weights(self.accelerator.unwrap_model(model or self.model), weights, where=folder)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        read_optimizer(Path(checkpoint), self.optimizer)
        schedule = json.loads((Path(checkpoint) / "scheduler.json").read_text(encoding="utf-8"))
        self.lr_scheduler.load_state_dict({**self.lr_scheduler.state_dict(), **schedule})

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Restores nothing: every rollout seeds its own draws."""

    def _load_scaler(self, checkpoint: str | None) -> None:
        """Restores nothing: there is no loss scaling in float32 and bfloat16."""


def _unpadded(inputs: PromptInputs) -> list[list[int]]:
    lengths = inputs.attention_mask.sum(dim=1).tolist()
    return [row[-length:] for row, length in zip(inputs.input_ids.tolist(), lengths, strict=True)]


def _group_by_prompt(batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the micro-batches of one update with the replies to a prompt side by side, so that it is read once.

    Prompts with short replies come first, so that the padding of few micro-batches is long. Which micro-batch a reply
    is in does not change the gradient: the loss is a mean over the whole update.
    """
    unique, prompt = torch.cat([batch["rows"] for batch in batches]).unique(return_inverse=True)
    lengths = torch.cat([batch["completion_mask"].sum(dim=1) for batch in batches])
    longest = torch.zeros(len(unique), dtype=lengths.dtype, device=lengths.device)
    longest.scatter_reduce_(0, prompt.to(lengths.device), lengths, "amax")
    rank = longest.argsort(stable=True).argsort()
    order = rank[prompt.to(lengths.device)].argsort(stable=True)
    joined = {
        name: torch.cat([batch[name] for batch in batches])[order.to(value.device)]
        for name, value in batches[0].items()
        if torch.is_tensor(value) and value.dim() > 0
    }
    size = len(order) // len(batches)
    return [
        batch | {name: value[place * size : (place + 1) * size] for name, value in joined.items()}
        for place, batch in enumerate(batches)
    ]
