"""The cascade's two rankers: DCN, cheap enough for hundreds of queries, and DIN, which looks at the shopper too.

Both see the same of a query: the mean of its tokens' embeddings, an embedding of its own, and the numbers of
:class:`onesug_lite.features.Features`. Both are trained on the pointwise log loss, each on labels of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from onesug_lite.features import CascadeConfig, Requests
from onesug_lite.log import POSITIONS


class Batch(NamedTuple):
    """What a ranker reads of B requests with C candidates each; numbers are texts of ``tokens``, -1 for none.

    Attributes:
        tokens: (N + 1, T) token ids of all texts.
        prefix: (B,).
        candidates: (B, C).
        numeric: (B, C, F) from :class:`onesug_lite.features.Features`.
        history: (B, H).
        profile: (B, A).
        position: (B, C) places in the list from 1; 1 when serving.
    """

    tokens: Tensor
    prefix: Tensor
    candidates: Tensor
    numeric: Tensor
    history: Tensor
    profile: Tensor
    position: Tensor

    def take(self, rows: Tensor) -> Batch:
        """Some of the requests."""
        return Batch(self.tokens, *(value[rows] for value in self[1:]))


def batch_of(
    requests: Requests, candidates: np.ndarray, numeric: np.ndarray, position: np.ndarray | None = None
) -> Batch:
    """Requests, their candidates (B, C) and features (B, C, F) as tensors; without positions all stand at the top."""
    position = np.ones_like(candidates) if position is None else position
    arrays = (requests.prefix, candidates, numeric, requests.history, requests.profile, position)
    return Batch(requests.tokens, *map(torch.from_numpy, arrays))


class Items(nn.Module):
    """Embedding of a text: the mean over its tokens, and for a query of the pool an embedding of its own on top.

    Args:
        vocabulary: more than the largest token id; 0 is the pad.
        queries: size of the pool, whose queries are the first texts.
        dim: E.
    """

    def __init__(self, vocabulary: int, queries: int, dim: int):
        super().__init__()
        self.queries = queries
        self.text = nn.EmbeddingBag(vocabulary, dim, mode="mean", padding_idx=0)
        self.identity = nn.Embedding(queries + 1, dim, padding_idx=0)
        with torch.no_grad():
            self.text.weight.mul_(0.1)
            self.identity.weight.mul_(0.01)  # a query that training never met is described by its text

    def forward(self, tokens: Tensor, numbers: Tensor) -> Tensor:
        """Embed texts of any shape (...) as (..., E); text -1 is 0."""
        known = torch.where(numbers < self.queries, numbers + 1, 0)
        return self.words(tokens, numbers) + self.identity(known)

    def words(self, tokens: Tensor, numbers: Tensor) -> Tensor:
        """The same without the queries' own embeddings."""
        return self.text(tokens[numbers.reshape(-1)]).view(*numbers.shape, -1)


class Scale(nn.Module):
    """Brings each number to mean 0 and deviation 1 over the training rows, and cuts it off at 5 deviations.

    Args:
        features: how many numbers, F.
    """

    def __init__(self, features: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("deviation", torch.ones(features))

    def fit(self, numeric: Tensor) -> None:
        """Measure (N, F) training rows."""
        self.mean.copy_(numeric.mean(dim=0))
        self.deviation.copy_(numeric.std(dim=0, correction=0).clamp(min=1e-3))

    def forward(self, numeric: Tensor) -> Tensor:
        """(..., F) to (..., F)."""
        return ((numeric - self.mean) / self.deviation).clamp(-5, 5)


class CrossLayer(nn.Module):
    r"""One layer of explicit feature crosses: :math:`x_{l+1} = x_0 \odot (W_l x_l + b_l) + x_l`.

    Args:
        width: W.

    Source:
        Wang et al., "DCN V2: Improved Deep & Cross Network" (2021), equation 1.
    """

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, first: Tensor, x: Tensor) -> Tensor:
        """``first`` is the network's input (..., W), ``x`` the output of the layer before (..., W)."""
        return first * self.linear(x) + x


class DCN(nn.Module):
    """Deep and cross network: cross layers beside a small perceptron, both on the same input.

    Args:
        features: columns of ``numeric``.
        vocabulary: of the tokens.
        queries: size of the pool.
        config: sizes.

    Source:
        Wang et al. (2021), the parallel structure. The paper names DCN for pre-rank.
    """

    def __init__(self, features: int, vocabulary: int, queries: int, config: CascadeConfig):
        super().__init__()
        self.items = Items(vocabulary, queries, config.dim)
        self.scale = Scale(features)
        width = features + 2 * config.dim
        self.cross = nn.ModuleList(CrossLayer(width) for _ in range(config.cross_layers))
        self.deep = _perceptron(width, config.hidden)
        self.out = nn.Linear(width + config.hidden[-1], 1)

    def forward(self, batch: Batch) -> Tensor:
        """Score (B, C), a logit."""
        prefix = self.items.words(batch.tokens, batch.prefix)[:, None, :]  # (B, 1, E)
        query = self.items(batch.tokens, batch.candidates)  # (B, C, E)
        first = torch.cat([self.scale(batch.numeric), prefix.expand_as(query), query], dim=-1)  # (B, C, W)
        crossed = first
        for layer in self.cross:
            crossed = layer(first, crossed)
        return self.out(torch.cat([crossed, self.deep(first)], dim=-1)).squeeze(-1)


class Attention(nn.Module):
    r"""The interest of a shopper as one candidate sees it: earlier searches, summed with weights that depend on it.

    The weight of search h for candidate c is :math:`w^\top f(U h + V c + P (h \odot c) + b) + a`, a perceptron of h, c
    and their product. (DIN's code feeds in h - c as well, which U and V can express.) Weights are not normalised, so
    that the sum tells how much of the history is about the candidate; the order of the history does not matter.

    Args:
        dim: E.
        hidden: units of the perceptron.

    Source:
        Zhou et al., "Deep Interest Network for Click-Through Rate Prediction" (2018).
    """

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.search = nn.Linear(dim, hidden, bias=False)
        self.candidate = nn.Linear(dim, hidden)
        self.product = nn.Linear(dim, hidden, bias=False)
        self.weight = nn.Sequential(nn.PReLU(), nn.Linear(hidden, 1))

    def forward(self, candidate: Tensor, history: Tensor, present: Tensor) -> Tensor:
        """Candidates (B, C, E), history (B, H, E) and which of it there is (B, H) to interests (B, C, E)."""
        product = self.product(candidate[:, :, None] * history[:, None])  # (B, C, H, hidden)
        hidden = product + self.search(history)[:, None] + self.candidate(candidate)[:, :, None]
        weight = self.weight(hidden).squeeze(-1)  # (B, C, H)
        return weight.masked_fill(~present[:, None], 0) @ history


class DIN(nn.Module):
    """Deep interest network: attention over the shopper's history, candidate by candidate.

    With the feature ``profile`` a hashed weight of each (profile attribute, query token) is added to the logit. With
    ``position`` a weight of the place where the query stood is added, so that the rest of the model need not explain
    what a good place alone brings; when serving, every candidate is scored as if it stood at the top.

    Args:
        features: columns of ``numeric``.
        vocabulary: of the tokens.
        queries: size of the pool.
        config: sizes and groups of features.

    Source:
        Zhou et al. (2018), with PReLU in place of Dice; crosses as in Cheng et al., "Wide & Deep Learning for
        Recommender Systems" (2016); position as in Zhao et al., "Recommending What Video to Watch Next" (2019).
    """

    def __init__(self, features: int, vocabulary: int, queries: int, config: CascadeConfig):
        super().__init__()
        self.items = Items(vocabulary, queries, config.dim)
        self.scale = Scale(features)
        self.attention = Attention(config.dim, config.attention)
        self.deep = _perceptron(features + 6 * config.dim, config.hidden)
        self.out = nn.Linear(config.hidden[-1], 1)
        self.crosses = nn.Embedding(config.buckets, 1) if "profile" in config.features else None
        self.position = nn.Embedding(POSITIONS, 1) if "position" in config.features else None
        for table in (self.crosses, self.position):
            if table is not None:
                nn.init.zeros_(table.weight)

    def forward(self, batch: Batch) -> Tensor:
        """Score (B, C), a logit of the click."""
        query = self.items(batch.tokens, batch.candidates)  # (B, C, E)
        interest = self.attention(query, self.items(batch.tokens, batch.history), batch.history >= 0)
        shopper = self.items.words(batch.tokens, batch.profile).sum(dim=1)  # (B, E)
        shopper = shopper / (batch.profile >= 0).sum(dim=1, keepdim=True).clamp(min=1)
        prefix = self.items.words(batch.tokens, batch.prefix)
        shopper, prefix = (part[:, None].expand_as(query) for part in (shopper, prefix))
        x = [self.scale(batch.numeric), prefix, query, interest, shopper, query * interest, query * shopper]
        score = self.out(self.deep(torch.cat(x, dim=-1))).squeeze(-1)
        if self.crosses is not None:
            score = score + self._crosses(batch)
        if self.position is not None:
            score = score + self.position(batch.position - 1).squeeze(-1)
        return score

    def _crosses(self, batch: Batch) -> Tensor:
        buckets = self.crosses.num_embeddings
        tokens = batch.tokens[batch.profile].long()  # (B, A, T)
        place = torch.arange(1, tokens.shape[2] + 1) * 2 + 1
        attribute = (tokens * place).sum(dim=2) * 7919  # (B, A): a number of the attribute's tokens in their order
        query = batch.tokens[batch.candidates].long()  # (B, C, T)
        both = (attribute[:, None, :, None] + query[:, :, None, :] * 104_729) % buckets  # (B, C, A, T)
        real = (batch.profile >= 0)[:, None, :, None] & (query > 0)[:, :, None, :]
        return (self.crosses(both).squeeze(-1) * real).sum(dim=(2, 3))


def _perceptron(width: int, hidden: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Linear(width, size), nn.PReLU()]
        width = size
    return nn.Sequential(*layers)


def log_loss(logits: Tensor, labels: Tensor, real: Tensor) -> Tensor:
    r"""Pointwise log loss :math:`-y \log \sigma(s) - (1 - y) \log(1 - \sigma(s))`, the mean over real candidates.

    Args:
        logits: (B, C).
        labels: (B, C) of 0 and 1.
        real: ``bool`` (B, C); what is not real does not count.

    Returns:
        Scalar.
    """
    return nn.functional.binary_cross_entropy_with_logits(logits[real], labels[real])


def fit(
    model: DCN | DIN, batch: Batch, labels: Tensor, epochs: int, config: CascadeConfig, rng: np.random.Generator
) -> pl.DataFrame:
    """Train a ranker by AdamW on the pointwise log loss; the learning rate falls to 0 along a line.

    Args:
        model: trained in place and left in evaluation mode.
        batch: all R training requests with their candidates.
        labels: (R, C) of 0 and 1.
        epochs: passes over the requests.
        config: ``batch_size``, ``learning_rate`` and ``weight_decay`` are read.
        rng: order of the requests.

    Returns:
        ``step, loss``; the loss is the mean of the steps since the row before.
    """
    from tqdm.auto import tqdm

    real = batch.candidates >= 0
    model.scale.fit(batch.numeric[real])
    model.train()
    size = min(config.batch_size, len(labels))
    order = np.concatenate([rng.permutation(len(labels)) for _ in range(epochs)])
    steps = len(order) // size
    optimiser = torch.optim.AdamW(model.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    decay = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)
    history, losses = [], []
    every = max(1, steps // 50)
    for step in tqdm(range(steps), desc=type(model).__name__.lower(), leave=False, disable=None):
        rows = torch.from_numpy(order[step * size : (step + 1) * size])
        loss = log_loss(model(batch.take(rows)), labels[rows], real[rows])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        decay.step()
        losses.append(loss.item())
        if (step + 1) % every == 0 or step + 1 == steps:
            history.append((step + 1, float(np.mean(losses))))
            losses.clear()
    model.eval()
    return pl.DataFrame(history, schema={"step": pl.Int64, "loss": pl.Float64}, orient="row")
