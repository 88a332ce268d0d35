"""Training of the RQ-VAE: its start, its losses, and what is done about codes that nothing uses.

A codebook that starts at random soon leaves most of its codes unused. So the model first learns as a plain autoencoder,
k-means on what each level leaves over places the codes, and a code that no text chose is moved onto a text.

Source: paper, section PRE (RQ-VAE); start and revival after Zeghidour et al., "SoundStream" (2021).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from torch import Tensor

from onesug_lite.rqvae import RQVAE, RQVAEConfig, nearest_code


class RQVAEResult(NamedTuple):
    """A trained model.

    Attributes:
        model: in evaluation mode.
        history: ``step, phase, loss, reconstruction_loss, commitment_loss, used, revived``; ``phase`` is
            ``autoencoder`` or ``quantised``, ``used`` the share of all codes chosen since the last revival,
            ``revived`` the codes moved then.
    """

    model: RQVAE
    history: pl.DataFrame


def train_rqvae(embeddings: np.ndarray, config: RQVAEConfig, generator: torch.Generator) -> RQVAEResult:
    """Train an RQ-VAE: first as an autoencoder, then k-means on its residuals, then with the codebooks.

    K-means on the latents of an untrained encoder would cluster noise; hence the short first phase. Every
    ``revive_every`` steps a code that no text chose moves onto the residual of a text drawn at random.

    Args:
        embeddings: ``float32`` (N, D), all distinct texts, prefixes and queries alike.
        config: model and training.
        generator: of the weights, the batches and the revivals (on the CPU).

    Returns:
        The model and the course of its losses.

    Raises:
        ValueError: no embedding, or one that is not finite.

    Source:
        Paper, section PRE; k-means start and revival after Zeghidour et al., "SoundStream" (2021).
    """
    from tqdm.auto import trange

    data = torch.as_tensor(np.ascontiguousarray(embeddings), dtype=torch.float32)
    if data.ndim != 2 or not len(data):
        raise ValueError(f"embeddings have shape {tuple(data.shape)}; expected (N, D) with N of 1 or more.")
    if not torch.isfinite(data).all():
        row = int((~torch.isfinite(data).all(dim=1)).nonzero()[0])
        raise ValueError(f"embedding {row} is not finite; expected unit vectors, as encoder.embed gives.")

    with torch.random.fork_rng(devices=[]):  # layers draw their weights from the global generator
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        model = RQVAE(data.shape[1], config)
    optimiser = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=0.0)
    decay = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: 1.0 if step < config.steps / 2 else max(0.05, 2 * (1 - step / config.steps))
    )
    uses = torch.zeros(config.levels, config.codes, dtype=torch.int64)
    rows, revived, used = [], 0, 0.0
    every = max(1, config.steps // 50)
    bar = trange(config.steps, desc="rq-vae", leave=False, disable=None)
    for step in bar:
        quantised = step >= config.warmup_steps
        if step == config.warmup_steps:
            start_codebooks(model, data, generator)
        batch = data[torch.randint(len(data), (config.batch_size,), generator=generator)]  # (B, D)
        if quantised:
            output = model(batch)
            error, commitment = output.reconstruction_loss, output.commitment_loss
            for level in range(config.levels):
                uses[level] += torch.bincount(output.codes[:, level], minlength=config.codes)
        else:
            error = (batch - model.decoder(model.encoder(batch))).square().sum(dim=1).mean()
            commitment = error.new_zeros(())
        loss = error + commitment
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        decay.step()
        # Not in the last tenth: a code moved there would have no time to settle.
        if quantised and (step - config.warmup_steps + 1) % config.revive_every == 0:
            used = float((uses > 0).float().mean())
            if step < 0.9 * config.steps:
                revived = revive_codes(model, batch, uses == 0, generator)
            uses.zero_()
        if step % every == 0 or step == config.steps - 1:
            phase = "quantised" if quantised else "autoencoder"
            rows.append((step, phase, loss.item(), error.item(), commitment.item(), used, revived))
            bar.set_postfix(loss=f"{loss.item():.4f}")
    columns = ("step", "phase", "loss", "reconstruction_loss", "commitment_loss", "used", "revived")
    return RQVAEResult(model.eval(), pl.DataFrame(rows, schema=columns, orient="row"))


@torch.no_grad()
def start_codebooks(model: RQVAE, data: Tensor, generator: torch.Generator) -> None:
    """Put each codebook on the k-means centres of the residuals that the levels before it leave.

    Args:
        model: its codebooks are replaced.
        data: (N, D) embeddings.
        generator: of the sample and the k-means seeds.
    """
    from sklearn.cluster import MiniBatchKMeans

    config = model.config
    some = torch.randperm(len(data), generator=generator)[: config.kmeans_texts]
    residual = model.encoder(data[some])  # (n, latent)
    for level in range(config.levels):
        seed = int(torch.randint(2**31 - 1, (), generator=generator))
        distinct = len(torch.unique(residual, dim=0))
        centres = min(config.codes, distinct)
        kmeans = MiniBatchKMeans(
            centres,
            init="random",
            n_init=1,
            max_iter=config.kmeans_iterations,
            batch_size=4096,
            random_state=seed,
        ).fit(residual.numpy())
        model.codebooks[level, :centres] = torch.from_numpy(kmeans.cluster_centers_.astype(np.float32))
        if centres < config.codes:  # fewer texts than codes: the rest start far away and stay unused
            spread = residual.norm(dim=1).max() * 10 + 1
            model.codebooks[level, centres:] = spread
        codebook = model.codebooks[level]
        residual = residual - codebook[nearest_code(residual, codebook)]


@torch.no_grad()
def revive_codes(model: RQVAE, batch: Tensor, dead: Tensor, generator: torch.Generator) -> int:
    """Move each dead code onto the residual that a text drawn at random has at its level.

    Args:
        model: its codebooks are changed in place.
        batch: (B, D) embeddings to draw from.
        dead: ``bool`` (levels, codes), the codes to move.
        generator: draws the texts.

    Returns:
        How many codes were moved.
    """
    residual = model.encoder(batch)  # (B, latent)
    for level, codebook in enumerate(model.codebooks):
        chosen = codebook[nearest_code(residual, codebook)]
        gone = dead[level].nonzero().squeeze(1)
        drawn = torch.randint(len(batch), (len(gone),), generator=generator)
        codebook[gone] = residual[drawn]
        residual = residual - chosen  # as the levels below have seen it so far
    return int(dead.sum())
