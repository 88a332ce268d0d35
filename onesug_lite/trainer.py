"""How any training of the generator is run: transformers' ``Trainer`` with a loss that is handed in.

A run has a fingerprint. Its checkpoints carry it, so that an interrupted run goes on and ends with the same bytes as
one without interruption, and no run ever goes on from another's weights. Mixed precision is used where the processor
multiplies bf16 numbers natively; progress is one bar.

Source: ours.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl
import torch
from torch import Tensor

from onesug_lite.generator import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer

    from onesug_lite.training import TrainConfig


class TrainResult(NamedTuple):
    """What a training returns.

    Attributes:
        model: the trained model, in evaluation mode.
        history: frame with columns step and loss (nats per token, mean over the last ``log_every`` steps).
        seconds: wall time of this call; what an interrupted call had spent is not in it.
    """

    model: PreTrainedModel
    history: pl.DataFrame
    seconds: float


def set_seed(seed: int, threads: int = 1) -> None:
    """Seed every global random generator and fix the number of threads.

    Sums of floats depend on the order of their terms, hence on the number of threads, so the same bytes need
    both to be fixed.

    Args:
        seed: for Python, numpy and torch.
        threads: for torch's operations.
    """
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  libraries that draw from numpy's global generator
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Deterministic mode also writes NaN into all fresh memory, to unmask code that reads it; that costs a
    # third of the time of a search and changes no result here.
    torch.utils.deterministic.fill_uninitialized_memory = False


class Steps(torch.utils.data.Dataset):
    """A data set whose item i is the whole batch of step i.

    Args:
        steps: number of batches.
        batch: makes the batch of a step.
    """

    def __init__(self, steps: int, batch: Any):
        self.steps, self.batch = steps, batch

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        return self.batch(step)


def fingerprint(model: PreTrainedModel, *parts: Any) -> str:
    """Tell one training run from another: starting weights, configuration, seed and examples.

    Args:
        model: in its starting state.
        parts: frozen dataclasses, numbers, texts, arrays or lists of token ids.

    Returns:
        A hexadecimal digest.
    """
    digest = hashlib.sha256()
    for name, weights in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weights.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    for part in parts:
        if dataclasses.is_dataclass(part):
            part = json.dumps(dataclasses.asdict(part), sort_keys=True)
        elif isinstance(part, np.ndarray):
            part = part.tobytes()
        elif isinstance(part, Sequence) and not isinstance(part, str):
            digest.update(np.array([len(row) for row in part], np.int64).tobytes())
            flat = [item for row in part for item in row]
            if flat and not isinstance(flat[0], int | np.integer):  # prompts with several tokens a position
                digest.update(np.array([len(item) for item in flat], np.int64).tobytes())
                flat = [token for item in flat for token in item]
            part = np.array(flat, np.int64).tobytes()
        digest.update(part if isinstance(part, bytes) else str(part).encode())
        digest.update(b"\0")
    return digest.hexdigest()


def run_trainer(
    loss: Callable[[PreTrainedModel, dict[str, Tensor]], tuple[Tensor, dict[str, Tensor]]],
    model: PreTrainedModel,
    steps: Steps,
    config: TrainConfig,
    seed: int,
    work: Path,
    run: str,
) -> TrainResult:
    """Run a ``Trainer`` quietly, with checkpoints that belong to this run alone.

    Args:
        loss: from the model and a batch to the loss and to what else the history watches (means of tensors by name).
        model: trained in place.
        steps: the batches.
        config: optimiser, schedule and intervals; anything with the fields of ``TrainConfig`` from ``steps``
            to ``save_every``, ``group_batches`` aside.
        seed: of dropout.
        work: folder for the checkpoints.
        run: fingerprint of the run; checkpoints of another one are removed.

    Returns:
        Model, history and seconds; ``history`` holds every number that the trainer logged as a column.

    Raises:
        ValueError: started on several devices.
    """
    from transformers import PrinterCallback, ProgressCallback, TrainingArguments

    started = time.perf_counter()
    work = Path(work)
    checkpoint = _checkpoint_of(work, run)
    on_gpu = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(work),
        max_steps=config.steps,
        per_device_train_batch_size=1,  # an item is a batch already
        train_sampling_strategy="sequential",
        optim="adamw_torch_fused",
        learning_rate=config.learning_rate,
        warmup_steps=config.warmup,
        lr_scheduler_type="linear",
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        bf16=bf16_pays() if config.bf16 is None else config.bf16,
        use_cpu=not on_gpu,
        logging_steps=config.log_every,
        # A loss is logged as the mean since the last log, so a run may only be cut between two logs.
        save_steps=-(-config.save_every // config.log_every) * config.log_every,
        save_total_limit=2,  # one to fall back on when the newest was cut short while it was written
        report_to="none",
        disable_tqdm=True,
        seed=seed,
        remove_unused_columns=False,
        dataloader_pin_memory=on_gpu,
    )
    given = {name: weights.detach().clone() for name, weights in model.state_dict().items()}
    trainer = _trainer_class()(
        loss,
        model=model,
        args=arguments,
        train_dataset=steps,
        data_collator=lambda items: items[0],
        callbacks=[_progress_bar()],
    )
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    try:
        with quiet():
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except BaseException:
        model.load_state_dict(given)
        raise
    finally:
        # The trainer leaves its mixed-precision wrapper on the model, but decoding is meant to be in full
        # precision; and it marks the model as wrapped, so that the next training would silently run without.
        for leftover in ("forward", "_original_forward", "_is_accelerate_prepared"):
            vars(model).pop(leftover, None)
        model.zero_grad(set_to_none=True)
        model.eval()
    _forget(work)
    return TrainResult(model, _history(trainer.state.log_history), time.perf_counter() - started)


def _trainer_class() -> type[Trainer]:
    """A ``Trainer`` with a loss that is handed in; made here because importing ``Trainer`` takes seconds."""
    from transformers import Trainer

    class LossTrainer(Trainer):
        def __init__(self, loss, **options):
            super().__init__(**options)
            self.loss, self.seen = loss, {}

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            if not hasattr(model, "get_input_embeddings"):
                raise ValueError("training runs on one device; start it as a single process with one GPU")
            with self.accelerator.autocast():  # the trainer's own covers a call of the whole model alone
                value, watched = self.loss(model, inputs)
            for name, tensor in watched.items():
                self.seen.setdefault(name, []).append(tensor.detach().mean())
            return value

        def log(self, logs, *args, **options):
            if "loss" in logs:
                logs = logs | {name: torch.stack(values).mean().item() for name, values in self.seen.items()}
                self.seen = {}
            super().log(logs, *args, **options)

    return LossTrainer


def bf16_pays() -> bool:
    """Whether this machine multiplies bf16 numbers faster than fp32 ones."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


def _checkpoint_of(work: Path, run: str) -> Path | None:
    """The newest whole checkpoint of this run; removes what is cut short or of another run."""
    work.mkdir(parents=True, exist_ok=True)
    marker = work / "run.txt"
    if not marker.is_file() or marker.read_text() != run:
        _forget(work)
        work.mkdir(parents=True, exist_ok=True)
        fresh = marker.with_suffix(".new")
        fresh.write_text(run)
        os.replace(fresh, marker)
        return None
    steps = {path: path.name.removeprefix("checkpoint-") for path in work.glob("checkpoint-*")}
    for path in sorted(steps, key=lambda path: int(steps[path]), reverse=True):
        try:
            json.loads((path / "trainer_state.json").read_text())  # the trainer writes this file last
            return path
        except (OSError, ValueError):
            shutil.rmtree(path)
    return None


def _forget(work: Path) -> None:
    """Remove the checkpoints, and the folder with them when nothing else is in it."""
    for path in work.glob("checkpoint-*"):
        shutil.rmtree(path, ignore_errors=True)
    (work / "run.txt").unlink(missing_ok=True)
    if work.is_dir() and not any(work.iterdir()):
        work.rmdir()


def _history(logs: list[dict[str, float]]) -> pl.DataFrame:
    """One row per log of the trainer; the summary at the end of the run is left out."""
    rows = [log for log in logs if "loss" in log]
    dropped = {"epoch", "grad_norm", "learning_rate", "step", "loss"}
    extra = sorted({name for row in rows for name in row} - dropped)
    columns = {"step": pl.Series([row["step"] for row in rows], dtype=pl.Int64)}
    for name in ("loss", *extra):
        columns[name] = pl.Series([row.get(name) for row in rows], dtype=pl.Float64)
    return pl.DataFrame(columns)


def _progress_bar() -> Any:
    """A bar that shows the step and the latest loss, and leaves nothing behind."""
    from tqdm.auto import tqdm
    from transformers import TrainerCallback

    class ProgressBar(TrainerCallback):
        bar = None

        def on_train_begin(self, args, state, control, **_):
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="train", unit="step", leave=False)

        def on_step_end(self, args, state, control, **_):
            self.bar.update(1)

        def on_log(self, args, state, control, logs=None, **_):
            if logs and "loss" in logs:
                self.bar.set_postfix(loss=f"{float(logs['loss']):.3f}", refresh=False)

        def on_train_end(self, args, state, control, **_):
            self.bar.close()

    return ProgressBar()
