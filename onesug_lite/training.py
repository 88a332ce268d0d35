r"""Supervised fine-tuning of the generator, and how any of its trainings is run.

The generator maximises the likelihood of the clicked query given the prompt,

.. math:: L_{SFT} = -\frac{1}{|q|} \sum_t \log \pi_\theta(q_t \mid q_{<t}, x),

averaged over the tokens of a batch. What comes out is the seed model :math:`M_t` that preference training
starts from. :func:`run_trainer` wraps transformers' ``Trainer``: checkpoints, resumption, mixed precision, progress.

Source: paper, section "One encoder-decoder"; authors' public repository for the name seed model.
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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from onesug_lite.generator import Prompt, collate, query_logits, quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer


@dataclass(frozen=True)
class TrainConfig:
    """Supervised fine-tuning. The paper states none of these."""

    steps: int = 1500  # ours: about 3 passes over 120,000 clicks
    batch_size: int = 256  # ours
    learning_rate: float = 2e-3  # ours: for random weights; 3e-5 suits a pretrained checkpoint
    warmup: int = 100  # ours: steps of rising rate, then it falls linearly to zero
    weight_decay: float = 0.01  # ours
    max_grad_norm: float = 1.0  # ours
    bf16: bool | None = None  # ours: None uses it where the processor multiplies bf16 natively
    group_batches: int = 32  # ours: batches sorted by length together; 1 leaves the order random
    log_every: int = 10  # ours: steps one point of the loss curve averages over
    save_every: int = 250  # ours: steps that an interruption costs at most


class Examples(NamedTuple):
    """What supervised training reads.

    Attributes:
        prompts: N encoder inputs without padding.
        targets: N queries to write, token ids that end with the end of sequence.
    """

    prompts: Sequence[Prompt]
    targets: Sequence[Sequence[int]]


class TrainResult(NamedTuple):
    """What supervised training returns.

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


def plan_batches(lengths: np.ndarray, config: TrainConfig, seed: int) -> np.ndarray:
    """Lay out which examples each step sees, before training starts.

    Examples come in a new random order at each pass. Inside a window of ``group_batches`` batches they are
    sorted by length, so that a batch holds prompts of about one length and little padding, and the batches of
    a window are shuffled. Knowing the plan in advance makes a resumed run see what the interrupted one would
    have seen.

    Args:
        lengths: (N,) prompt lengths in tokens.
        config: uses ``steps``, ``batch_size`` and ``group_batches``.
        seed: of the order.

    Returns:
        Example numbers of shape (steps, batch_size); over a pass every example comes once.
    """
    rng = np.random.default_rng(seed)
    needed = config.steps * config.batch_size
    passes = -(-needed // len(lengths))
    stream = np.concatenate([rng.permutation(len(lengths)) for _ in range(passes)])[:needed]
    window = config.group_batches * config.batch_size
    plan = []
    for first in range(0, needed, window):
        rows = stream[first : first + window]
        rows = rows[np.argsort(lengths[rows], kind="stable")].reshape(-1, config.batch_size)
        plan.append(rows[rng.permutation(len(rows))])
    return np.concatenate(plan)


def train_supervised(
    model: PreTrainedModel, examples: Examples, config: TrainConfig, seed: int, work: Path
) -> TrainResult:
    """Fine-tune on clicked queries by transformers' ``Trainer``.

    Checkpoints under ``work`` let an interrupted run go on: call again with the same arguments, and the
    result is, byte for byte, that of a run without interruption. They go away at the end. When the call ends
    early, by Ctrl-C or an error, ``model`` gets back the weights it came with.

    Args:
        model: of either architecture; trained in place.
        examples: prompts and targets.
        config: steps, rates and sizes.
        seed: of the data order and of dropout. The global generators of Python, numpy and torch are seeded
            with it.
        work: folder for the checkpoints; what another run left there is removed.

    Returns:
        Model, loss curve and seconds.

    Raises:
        ValueError: when there is no example, when prompts and targets differ in number, or when a sequence is
            longer than the model's positions.

    Source: paper, section "One encoder-decoder"; eq. supervised loss.
    """
    check_examples(model, examples)
    plan = plan_batches(np.array([len(prompt) for prompt in examples.prompts]), config, seed)
    pad_id = model.config.pad_token_id

    def batch(step: int) -> dict[str, torch.Tensor]:
        rows = plan[step]
        return collate([examples.prompts[row] for row in rows], [examples.targets[row] for row in rows], pad_id)

    def loss(model, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        logits = query_logits(model, **inputs).float().flatten(0, 1)  # (B * T, V)
        return F.cross_entropy(logits, inputs["labels"].flatten(), ignore_index=-100), {}

    run = fingerprint(model, config, seed, examples.prompts, examples.targets)
    return run_trainer(loss, model, Steps(config.steps, batch), config, seed, work, run)


def check_examples(model: PreTrainedModel, examples: Examples) -> None:
    """Refuse examples that cannot be trained on; see ``train_supervised`` for the errors."""
    if len(examples.prompts) != len(examples.targets):
        raise ValueError(f"{len(examples.prompts)} prompts and {len(examples.targets)} targets; expected as many")
    if not len(examples.prompts):
        raise ValueError("no examples to train on; expected at least one clicked query in the training days")
    positions = getattr(model.config, "max_position_embeddings", None)
    for name, sequences in examples._asdict().items():
        longest = max(map(len, sequences))
        if positions is not None and longest > positions:
            raise ValueError(
                f"the longest of the {name} has {longest} tokens and the model {positions} positions; "
                "raise GeneratorConfig.max_positions or lower the sizes in PromptConfig"
            )


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
