r"""The encoder-decoder that writes queries, and its supervised fine-tuning.

The generator maximises the likelihood of the clicked query given the prompt,

.. math:: L_{SFT} = -\frac{1}{|q|} \sum_t \log \pi_\theta(q_t \mid q_{<t}, x),

averaged over the tokens of a batch. What comes out is the seed model :math:`M_t` that preference training
starts from.

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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl
import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

# Fused attention is slow backwards in bf16 on a CPU: on two cores a training step of the lite model takes
# twice as long with torch's fused kernel as with the plain softmax(QK')V, and twice as long again in fp32.
ATTENTION = "eager"


@dataclass(frozen=True)
class GeneratorConfig:
    """Shape of the encoder-decoder, or the checkpoint it comes from."""

    checkpoint: str | None = None  # a Hugging Face encoder-decoder; paper: BART-base online; None: random weights
    d_model: int = 128  # ours; BART-base: 768
    encoder_layers: int = 2  # ours; BART-base: 6
    decoder_layers: int = 2  # ours; BART-base: 6
    heads: int = 4  # ours; BART-base: 12
    ffn: int = 512  # ours; BART-base: 3072
    dropout: float = 0.0  # ours: in so few passes over the clicks it only slows learning; BART-base: 0.1
    max_positions: int = 160  # ours: the longest prompt; BART-base: 1024


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
        prompts: N encoder inputs, token ids without padding.
        targets: N queries to write, token ids that end with the end of sequence.
    """

    prompts: Sequence[Sequence[int]]
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


def build_generator(config: GeneratorConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """Make the model: a BART of the given shape with random weights, or a checkpoint.

    Args:
        config: the shape; with ``checkpoint`` set, the shape is the checkpoint's and the other fields are
            unused.
        tokenizer: gives the size of the vocabulary and the ids of its control tokens.
        seed: of the weights; no global generator is touched.

    Returns:
        The model in evaluation mode, without any forced or forbidden token in decoding.

    Raises:
        ValueError: when the checkpoint has fewer embeddings than the tokeniser has tokens.

    Source: paper, section "One encoder-decoder" (BART-base).
    """
    from transformers import AutoModelForSeq2SeqLM, BartConfig, BartForConditionalGeneration

    if config.checkpoint is not None:
        with _quiet():
            model = AutoModelForSeq2SeqLM.from_pretrained(config.checkpoint, attn_implementation=ATTENTION)
        embeddings = model.get_input_embeddings().num_embeddings
        if embeddings < len(tokenizer):
            raise ValueError(
                f"checkpoint {config.checkpoint!r} embeds {embeddings} tokens and the tokeniser has "
                f"{len(tokenizer)}; use the checkpoint's own tokeniser"
            )
        return _plain_decoding(model)
    shape = BartConfig(
        vocab_size=len(tokenizer),
        d_model=config.d_model,
        encoder_layers=config.encoder_layers,
        decoder_layers=config.decoder_layers,
        encoder_attention_heads=config.heads,
        decoder_attention_heads=config.heads,
        encoder_ffn_dim=config.ffn,
        decoder_ffn_dim=config.ffn,
        dropout=config.dropout,
        max_position_embeddings=config.max_positions,
        # BART's 0.02 is meant for widths near 1,000. In a narrow model it makes what attention adds so faint that
        # hundreds of steps pass before the decoder takes notice of the prompt.
        init_std=config.d_model**-0.5,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.eos_token_id,  # as BART does
        forced_eos_token_id=None,
        attn_implementation=ATTENTION,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BartForConditionalGeneration(shape)
    return _plain_decoding(model)


def pad(sequences: Sequence[Sequence[int]], value: int, multiple: int = 1) -> torch.Tensor:
    """Stack sequences of different lengths, the short ones filled up on the right.

    Args:
        sequences: B lists of ids.
        value: what to fill with.
        multiple: the width is rounded up to a multiple of this.

    Returns:
        Ids of shape (B, T).
    """
    lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))
    width = max(int(lengths.max(initial=1)), 1)
    width = -(-width // multiple) * multiple
    rows = np.full((len(sequences), width), value, np.int64)  # (B, T)
    rows[np.arange(width) < lengths[:, None]] = [token for sequence in sequences for token in sequence]
    return torch.from_numpy(rows)


def collate(prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], pad_id: int) -> dict[str, torch.Tensor]:
    """Make a batch as Hugging Face encoder-decoders take it.

    Args:
        prompts: B encoder inputs.
        targets: B queries.
        pad_id: id of the padding token.

    Returns:
        input_ids (B, S), attention_mask (B, S) and labels (B, T), the latter -100 where nothing is to be
        learnt. S is a multiple of 4: few distinct shapes let the processor's matrix library reuse what it has
        compiled.
    """
    input_ids = pad(prompts, pad_id, multiple=4)
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    mask = (torch.arange(input_ids.shape[1]) < lengths[:, None]).long()  # (B, S)
    return {"input_ids": input_ids, "attention_mask": mask, "labels": pad(targets, -100)}


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
        model: an encoder-decoder; trained in place.
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

    run = fingerprint(model, config, seed, examples.prompts, examples.targets)
    from transformers import Trainer

    return run_trainer(Trainer, model, Steps(config.steps, batch), config, seed, work, run)


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
            part = np.array([token for row in part for token in row], np.int64).tobytes()
        digest.update(part if isinstance(part, bytes) else str(part).encode())
        digest.update(b"\0")
    return digest.hexdigest()


def run_trainer(
    trainer_class: type[Trainer],
    model: PreTrainedModel,
    steps: Steps,
    config: TrainConfig,
    seed: int,
    work: Path,
    run: str,
    **trainer_options: Any,
) -> TrainResult:
    """Run a ``Trainer`` quietly, with checkpoints that belong to this run alone.

    Args:
        trainer_class: ``transformers.Trainer`` or a subclass with its own loss.
        model: trained in place.
        steps: the batches.
        config: optimiser, schedule and intervals; anything with the fields of ``TrainConfig`` from ``steps``
            to ``save_every``, ``group_batches`` aside.
        seed: of dropout.
        work: folder for the checkpoints.
        run: fingerprint of the run; checkpoints of another one are removed.
        trainer_options: passed on to ``trainer_class``.

    Returns:
        Model, history and seconds; ``history`` holds every number that the trainer logged as a column.
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
    trainer = trainer_class(
        model=model,
        args=arguments,
        train_dataset=steps,
        data_collator=lambda items: items[0],
        callbacks=[_progress_bar()],
        **trainer_options,
    )
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    try:
        with _quiet():
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


def bf16_pays() -> bool:
    """Whether this machine multiplies bf16 numbers faster than fp32 ones."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


def save_generator(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    """Write weights (safetensors), configuration and tokeniser into one folder, whole or not at all.

    Args:
        model: the generator.
        tokenizer: the tokeniser it was trained with.
        folder: created or replaced.

    Returns:
        The folder.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    stale = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    for leftover in (fresh, stale):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        with _quiet():
            model.save_pretrained(fresh)
            tokenizer.save_pretrained(fresh)
        if folder.exists():
            os.replace(folder, stale)
        os.replace(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(stale, ignore_errors=True)
    return folder


def load_generator(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Read what ``save_generator`` wrote, or any Hugging Face encoder-decoder on disk.

    Args:
        folder: with config.json, the weights and the tokeniser.

    Returns:
        The model in evaluation mode and its tokeniser.

    Raises:
        FileNotFoundError: when the folder holds no model.
    """
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no config.json; expected a folder written by save_generator")
    with _quiet():
        model = AutoModelForSeq2SeqLM.from_pretrained(folder, attn_implementation=ATTENTION)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    return _plain_decoding(model), tokenizer


def _plain_decoding(model: PreTrainedModel) -> PreTrainedModel:
    """Drop what checkpoints bring along (forced tokens, penalties); a score is a log-probability."""
    from transformers import GenerationConfig

    config = model.config
    model.generation_config = GenerationConfig(
        bos_token_id=getattr(config, "bos_token_id", None),
        pad_token_id=config.pad_token_id,
        eos_token_id=config.eos_token_id,
        decoder_start_token_id=getattr(config, "decoder_start_token_id", None),
    )
    return model.eval()


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


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' own bars and remarks out of the notebooks, and put them back as they were."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
