"""Hierarchical semantic ids by a residual-quantised variational autoencoder (RQ-VAE).

An encoder maps an embedding to a short latent vector. The first codebook replaces the latent by its nearest
code, the second codebook does the same with what is left over, and so on. The numbers of the codes, coarse to
fine, are the semantic id (SID); the sum of the codes is decoded back into the embedding.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class RQVAEConfig:
    """The codebooks, the two small networks around them, and their training.

    Source:
        Paper, section PRE: RQ-VAE with 4 levels x 512 codes [third-party notes]; the rest is not given.
    """

    levels: int = 4  # paper: 4 [third-party notes]; the figure of the authors' public repository draws three
    codes: int = 512  # paper: 512 a level [third-party notes]
    latent: int = 32  # ours
    hidden: int = 128  # ours: one hidden layer in the encoder and one in the decoder
    commitment: float = 0.25  # ours: the usual value, van den Oord et al. (2017)
    steps: int = 1500  # ours
    warmup_steps: int = 300  # ours: of the steps, those as a plain autoencoder before the codebooks start
    batch_size: int = 1024  # ours
    learning_rate: float = 1e-3  # ours
    revive_every: int = 50  # ours: steps after which a code that no text chose is moved onto a text
    kmeans_texts: int = 20_000  # ours: texts that the k-means start sees
    kmeans_iterations: int = 10  # ours

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name not in ("commitment", "warmup_steps") and not value > 0:
                raise ValueError(f"RQVAEConfig.{name} is {value}; expected more than 0.")
        if not 0 <= self.warmup_steps < self.steps:
            raise ValueError(
                f"RQVAEConfig.warmup_steps is {self.warmup_steps}; expected 0 or more and fewer than steps, "
                f"{self.steps}."
            )


class RQVAEOutput(NamedTuple):
    """One pass through the model.

    Attributes:
        reconstruction: (N, D) decoded embeddings.
        codes: (N, levels) semantic ids.
        quantised: (N, latent) sums of the chosen codes.
        reconstruction_loss: scalar, mean squared length of the error of an embedding.
        commitment_loss: scalar, distance of residuals and codes, for both to move (see :class:`RQVAE`).
    """

    reconstruction: Tensor
    codes: Tensor
    quantised: Tensor
    reconstruction_loss: Tensor
    commitment_loss: Tensor


class RQVAE(nn.Module):
    r"""Encoder, residual codebooks, decoder.

    With :math:`r_0 = E(x)`, level *l* chooses :math:`k_l = \arg\min_k \lVert r_{l-1} - e^l_k \rVert` and
    leaves :math:`r_l = r_{l-1} - e^l_{k_l}`. The loss of an embedding is

    .. math::

        \lVert x - D(\textstyle\sum_l e^l_{k_l}) \rVert^2
        + \sum_l \lVert \mathrm{sg}[r_{l-1}] - e^l_{k_l} \rVert^2
        + \gamma\, \lVert r_{l-1} - \mathrm{sg}[e^l_{k_l}] \rVert^2

    with sg the stop-gradient; the gradient of the first term reaches the encoder straight through.

    Args:
        dim: length D of an embedding.
        config: levels, codes, latent and hidden sizes, and the commitment factor.

    Source:
        Lee et al., "Autoregressive image generation using residual quantization" (2022); Rajput et al.,
        "Recommender systems with generative retrieval" (2023) for semantic ids.
    """

    def __init__(self, dim: int, config: RQVAEConfig) -> None:
        super().__init__()
        self.dim, self.config = dim, config
        self.encoder = nn.Sequential(nn.Linear(dim, config.hidden), nn.ReLU(), nn.Linear(config.hidden, config.latent))
        self.decoder = nn.Sequential(nn.Linear(config.latent, config.hidden), nn.ReLU(), nn.Linear(config.hidden, dim))
        self.codebooks = nn.Parameter(torch.randn(config.levels, config.codes, config.latent) * 0.01)

    def forward(self, x: Tensor) -> RQVAEOutput:
        """Encode, quantise, decode.

        Args:
            x: (N, D) embeddings.

        Returns:
            The reconstruction, the ids and the two losses.
        """
        latent = self.encoder(x)  # (N, latent)
        codes, quantised, commitment = self.quantise(latent)
        straight = latent + (quantised - latent).detach()  # value of the codes, gradient of the latent
        reconstruction = self.decoder(straight)  # (N, D)
        error = (x - reconstruction).square().sum(dim=1).mean()
        return RQVAEOutput(reconstruction, codes, quantised, error, commitment)

    def quantise(self, latent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Residual quantisation.

        Args:
            latent: (N, latent).

        Returns:
            Codes (N, levels), their sum (N, latent), and the scalar commitment loss.
        """
        residual, quantised = latent, torch.zeros_like(latent)
        codes, loss = [], latent.new_zeros(())
        for codebook in self.codebooks:  # (codes, latent)
            chosen = nearest_code(residual.detach(), codebook.detach())  # (N,)
            code = codebook[chosen]  # (N, latent)
            loss = loss + (residual.detach() - code).square().sum(dim=1).mean()
            loss = loss + self.config.commitment * (residual - code.detach()).square().sum(dim=1).mean()
            # Later levels see the code as a constant, or they would pull it away from its own residuals.
            residual = residual - code.detach()
            quantised = quantised + code
            codes.append(chosen)
        return torch.stack(codes, dim=1), quantised, loss

    @torch.inference_mode()
    def encode(self, x: Tensor | np.ndarray) -> Tensor:
        """Semantic ids of embeddings.

        Args:
            x: (N, D) embeddings; a numpy array is fine.

        Returns:
            ``int64`` (N, levels), coarse to fine.
        """
        weight = self.codebooks
        x = torch.as_tensor(x, dtype=weight.dtype, device=weight.device)
        ids = [self.quantise(self.encoder(chunk))[0] for chunk in x.split(8192)]
        return torch.cat(ids) if ids else torch.zeros((0, self.config.levels), dtype=torch.int64)


def nearest_code(residual: Tensor, codebook: Tensor) -> Tensor:
    """Number of the nearest code by Euclidean distance, the lower one of equals.

    Args:
        residual: (N, latent).
        codebook: (codes, latent).

    Returns:
        ``int64`` (N,).
    """
    # |r - e|^2 = |r|^2 - 2 r.e + |e|^2, and |r|^2 is the same for every code.
    return torch.addmm(codebook.square().sum(dim=1), residual, codebook.T, alpha=-2).argmin(dim=1)


def codebook_report(codes: np.ndarray | Tensor, config: RQVAEConfig) -> pl.DataFrame:
    """How well the codebooks are used, level by level.

    Args:
        codes: (N, levels) semantic ids of N distinct texts.
        config: sizes of the codebooks.

    Returns:
        A row a level (1 is the coarsest): ``level``; ``used`` codes; ``share_used``; ``entropy_bits`` of how
        often each code is used and ``max_entropy_bits``, its bound, log2 of the codes; ``collisions``, the
        share of texts that share their id, shortened to this level, with another text.
    """
    codes = np.asarray(codes)
    rows = []
    for level in range(1, codes.shape[1] + 1):
        counts = np.bincount(codes[:, level - 1], minlength=config.codes)
        share = counts[counts > 0] / max(len(codes), 1)
        _, sizes = np.unique(codes[:, :level], axis=0, return_counts=True)
        rows.append(
            {
                "level": level,
                "used": int((counts > 0).sum()),
                "share_used": float((counts > 0).mean()),
                "entropy_bits": float(np.abs((share * np.log2(share)).sum())),
                "max_entropy_bits": float(np.log2(config.codes)),
                "collisions": float(sizes[sizes > 1].sum() / max(len(codes), 1)),
            }
        )
    return pl.DataFrame(rows)


def save_rqvae(model: RQVAE, folder: str | Path) -> None:
    """Write ``rqvae.safetensors`` and ``rqvae.json`` into a folder, each by a rename.

    Args:
        model: to save.
        folder: made when absent.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / ".rqvae.safetensors")
    text = json.dumps({"dim": model.dim, "config": asdict(model.config)}, indent=1)
    (folder / ".rqvae.json").write_text(text + "\n", encoding="utf-8")
    os.replace(folder / ".rqvae.safetensors", folder / "rqvae.safetensors")
    os.replace(folder / ".rqvae.json", folder / "rqvae.json")


def load_rqvae(folder: str | Path) -> RQVAE:
    """Load what :func:`save_rqvae` wrote.

    Args:
        folder: holds ``rqvae.safetensors`` and ``rqvae.json``.

    Returns:
        The model, in evaluation mode.

    Raises:
        FileNotFoundError: one of the files is missing.
    """
    from safetensors.torch import load_file

    folder = Path(folder)
    if not (folder / "rqvae.json").is_file() or not (folder / "rqvae.safetensors").is_file():
        raise FileNotFoundError(f"{folder} holds no RQ-VAE (rqvae.safetensors and rqvae.json); train one first.")
    held = json.loads((folder / "rqvae.json").read_text(encoding="utf-8"))
    model = RQVAE(held["dim"], RQVAEConfig(**held["config"]))
    model.load_state_dict(load_file(folder / "rqvae.safetensors"))
    return model.eval()
