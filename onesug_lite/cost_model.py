r"""What an answer costs: arithmetic, memory traffic, started operations and network hops of generator and cascade.

Each stage is counted from its shapes, as :class:`Work`. A :class:`Machine` turns work into time:

.. math::

    t = \frac{\mathrm{flops}}{F} + \frac{\mathrm{bytes}}{B} + \mathrm{operations} \cdot \tau + \mathrm{hops} \cdot h

Terms are added as if nothing overlapped. *F*, *B* and :math:`\tau` of the machine at hand are fitted to measurements by
:func:`fit_machine`; *h* cannot be measured in one process and stays a parameter. Every size is a field with its source,
so that a reader with a production system can put in their own.

Source: ours; the paper gives a response time 43.2 % lower (abstract) and no further figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl
from scipy.optimize import nnls

PAPER_REDUCTION = 0.432  # paper, abstract: mean response time of OneSug against the cascade


class Work(NamedTuple):
    """What one stage does for one request.

    Attributes:
        stage: its name.
        flops: multiplications and additions.
        bytes: of weights, caches and tables read or written, each once a use.
        operations: kernels started one after another.
        hops: calls to another machine that must be waited for.
    """

    stage: str
    flops: float
    bytes: float
    operations: float
    hops: float = 0.0


@dataclass(frozen=True)
class GeneratorCost:
    """Sizes of a generator with PRE; the defaults are those of the lite profile.

    Raises:
        ValueError: a size that is negative, or no position, beam, step or row.
    """

    d_model: int = 128  # GeneratorConfig; BART-base: 768
    ffn: int = 512  # GeneratorConfig; BART-base: 3072
    encoder_layers: int = 2  # GeneratorConfig; BART-base: 6
    decoder_layers: int = 2  # GeneratorConfig; BART-base: 6
    vocabulary: int = 1536  # ours: the tokeniser's, rounded up to blocks; BART-base: 50,265
    positions: int = 23  # ours: of the median prompt
    beams: int = 32  # paper [third-party notes]
    steps: float = 6.0  # ours, measured: tokens until no beam can win, the end included
    rows: float = 18.0  # ours, measured: beams that still run in a mean step
    pool: int = 23_000  # queries that PRE chooses from
    codes: int = 128  # RQVAEConfig: codes of the first level
    embedding: int = 96  # AlignConfig: length of a vector
    number_bytes: int = 4  # single precision; 2 for half
    encoder_operations: int = 14  # ours: kernels of an encoder layer
    decoder_operations: int = 24  # ours: kernels of a decoder layer and of the choice of beams that follows it
    hops: int = 1  # ours: the service that holds PRE and generator

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 0 or (value == 0 and name in ("d_model", "positions", "beams", "steps", "rows", "codes")):
                raise ValueError(f"GeneratorCost.{name} is {value}; expected more than 0")

    def works(self) -> list[Work]:
        """PRE, encoder and decoder steps."""
        d, number = self.d_model, self.number_bytes
        members = self.pool / self.codes
        layer = 4 * d * d + 2 * d * self.ffn  # weights
        encoder_weights = self.encoder_layers * layer + 2 * self.decoder_layers * d * d
        encoder_flops = 2 * self.positions * encoder_weights + 4 * self.encoder_layers * self.positions**2 * d
        step_weights = self.decoder_layers * (layer + 2 * d * d) + d * self.vocabulary
        looked_at = self.positions + self.steps / 2  # by a mean step, prompt and what is written
        step_flops = self.rows * (2 * step_weights + 4 * self.decoder_layers * looked_at * d)
        kept = self.rows * self.decoder_layers * 2 * d * self.steps / 2  # the cache of the queries that run
        scores = 3 * self.rows * self.vocabulary  # logits, their probabilities, the search of the best
        return [
            Work("PRE search", 2 * members * self.embedding, members * self.embedding * number, 12),
            Work(
                "encode",
                encoder_flops,
                (encoder_weights + 8 * self.encoder_layers * self.positions * d) * number,
                self.encoder_operations * self.encoder_layers + 4,
            ),
            Work(
                "decode",
                self.steps * step_flops,
                self.steps * (step_weights + 2 * kept + scores) * number,
                self.steps * (self.decoder_operations * self.decoder_layers + 16),
            ),
            Work("network", 0.0, 0.0, 0.0, self.hops),
        ]


@dataclass(frozen=True)
class CascadeCost:
    """Sizes of a cascade; the defaults are those of the lite profile, in one process and so without hops.

    Raises:
        ValueError: a negative size.
    """

    pool: int = 23_000  # queries
    scanned: float = 1.0  # ours: share of the pool whose vectors recall by embedding reads; a graph index: far less
    embedding: int = 96  # AlignConfig
    embed_layers: int = 2  # AlignConfig: of the text encoder
    embed_tokens: int = 8  # ours: of a prefix
    channels: int = 5  # CascadeConfig of onlineMCA
    recalled: int = 200  # CascadeConfig
    preranked: int = 64  # CascadeConfig
    features: int = 16  # of a candidate; the paper's cascade has hundreds [third-party notes]
    dim: int = 24  # CascadeConfig
    hidden: int = 64  # CascadeConfig: of the first layer, the second has half
    history: int = 8  # CascadeConfig: searches that DIN looks at
    attention: int = 24  # CascadeConfig
    number_bytes: int = 4
    channel_operations: int = 60  # ours: numpy, scipy and polars calls of one channel
    ranker_operations: int = 90  # ours: calls of features and network of one ranker
    hops: int = 0  # ours: recall, features, pre-rank, rank and re-rank in production

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 0:
                raise ValueError(f"CascadeCost.{name} is {value}; expected 0 or more")

    def works(self) -> list[Work]:
        """Embedding, recall, pre-rank and rank."""
        e, number = self.embedding, self.number_bytes
        encoder = self.embed_layers * 12 * e * e
        scanned = self.scanned * self.pool * e
        width = self.features + 2 * self.dim
        dcn = 2 * width * width + width * self.hidden + self.hidden**2 // 2
        din = (self.features + 6 * self.dim) * self.hidden + self.hidden**2 // 2
        looked = self.history * 2 * self.dim * self.attention
        read = self.features + 2 * self.dim
        return [
            Work("embed", 2 * self.embed_tokens * encoder, encoder * number, 30 * self.embed_layers),
            Work("recall", 2 * scanned, scanned * number, self.channels * self.channel_operations),
            Work(
                "pre-rank (DCN)",
                2 * self.recalled * dcn,
                (dcn + self.recalled * read) * number,
                self.ranker_operations,
            ),
            Work(
                "rank (DIN)",
                2 * self.preranked * (din + looked),
                (din + self.preranked * read * (1 + self.history)) * number,
                self.ranker_operations,
            ),
            Work("network", 0.0, 0.0, 0.0, self.hops),
        ]


@dataclass(frozen=True)
class Machine:
    """What turns work into time.

    Raises:
        ValueError: a speed of 0 or less, or a negative time.
    """

    flops: float  # effective, a second
    bytes: float  # effective, a second
    operation_seconds: float = 0.0  # to start a kernel
    hop_milliseconds: float = 0.0  # one call to another service: network, queue, packing; ours

    def __post_init__(self) -> None:
        if self.flops <= 0 or self.bytes <= 0 or self.operation_seconds < 0 or self.hop_milliseconds < 0:
            raise ValueError(f"{self}: expected speeds above 0 and times of 0 or more")

    def described(self) -> str:
        """The fitted constants in words."""
        arithmetic, memory = (
            f"no limit by {name} seen" if np.isinf(speed) else f"{speed / 1e9:.3g} {unit}"
            for name, speed, unit in (("arithmetic", self.flops, "GFLOP/s"), ("memory", self.bytes, "GB/s"))
        )
        return f"{arithmetic}, {memory}, {self.operation_seconds * 1e6:.1f} µs to start an operation"


# ours: a server GPU of 125 TFLOP/s and 600 GB/s in half precision, at the share that decoding one request reaches
SERVER = Machine(flops=20e12, bytes=400e9, operation_seconds=4e-6, hop_milliseconds=2.0)
BART_BASE = GeneratorCost(
    768, 3072, 6, 6, 50_265, positions=64, steps=8.0, rows=24.0, pool=10_000_000, codes=4096, embedding=768,
    number_bytes=2, hops=2,
)  # fmt: skip
"""Ours: BART-base (paper: served online), a pool of ten million, PRE as a service of its own."""
SERVICES = CascadeCost(
    10_000_000, 2e-4, 768, 12, 16, channels=6, recalled=2000, preranked=400, features=300, dim=64, hidden=512,
    history=50, attention=64, number_bytes=2, channel_operations=20, ranker_operations=40, hops=5,
)  # fmt: skip
"""Ours: a graph index over ten million, hundreds of features, and a service each for recall, features and rankers."""


def predict(works: Sequence[Work], machine: Machine) -> pl.DataFrame:
    """Milliseconds of each ``stage``: ``arithmetic``, ``memory``, ``operations``, ``network``, and their sum
    ``milliseconds``.
    """
    parts = ("arithmetic", "memory", "operations", "network")
    rows = [
        (
            work.stage,
            work.flops / machine.flops * 1e3,
            work.bytes / machine.bytes * 1e3,
            work.operations * machine.operation_seconds * 1e3,
            work.hops * machine.hop_milliseconds,
        )
        for work in works
    ]
    frame = pl.DataFrame(rows, schema=["stage", *parts], orient="row")
    return frame.with_columns(milliseconds=pl.sum_horizontal(parts))


def fit_machine(works: Sequence[Sequence[Work]], milliseconds: Sequence[float], operations: bool = True) -> Machine:
    """Constants of the machine that was measured, by least squares of the relative error, none of them negative.

    Args:
        works: N systems or shapes, each the works of one request.
        milliseconds: N measured times of these.
        operations: whether starting a kernel takes time; without it there are two constants, the two speeds.

    Returns:
        A machine without hops. A constant that the measurements say nothing of, as memory traffic where arithmetic
        explains all, is infinitely fast.

    Raises:
        ValueError: lengths that differ, or fewer measurements than constants.
    """
    wanted = 3 if operations else 2
    if len(works) != len(milliseconds) or len(works) < wanted:
        raise ValueError(f"{len(works)} works and {len(milliseconds)} times; expected as many, {wanted} or more")
    totals = np.array([[sum(w.flops for w in some), sum(w.bytes for w in some), sum(w.operations for w in some)]
                       for some in works])[:, :wanted]  # fmt: skip
    measured = np.asarray(milliseconds, dtype=np.float64) / 1e3
    relative = totals / measured[:, None]
    scale = relative.max(axis=0)  # so that no column is a billion times another
    found = nnls(relative / scale, np.ones(len(measured)))[0] / scale
    speeds = [1 / value if value > 0 else np.inf for value in found[:2]]
    return Machine(*speeds, operation_seconds=float(found[2]) if operations else 0.0)


def total(works: Sequence[Work], machine: Machine) -> float:
    """Milliseconds of one request."""
    return float(predict(works, machine)["milliseconds"].sum())


def reduction(generator: Sequence[Work], cascade: Sequence[Work], machine: Machine) -> float:
    """Share by which the generator answers sooner than the cascade; negative where it answers later."""
    return 1 - total(generator, machine) / total(cascade, machine)


def hop_for(wanted: float, generator: Sequence[Work], cascade: Sequence[Work], machine: Machine) -> float | None:
    """The shortest hop, in milliseconds, from which on the generator is sooner by a wanted share; None if none is.

    Args:
        wanted: share of the cascade's time, :data:`PAPER_REDUCTION` for the paper's.
        generator: works of a request.
        cascade: works of a request.
        machine: its hop is not read.
    """
    still = Machine(machine.flops, machine.bytes, machine.operation_seconds)
    hops = [sum(work.hops for work in works) for works in (generator, cascade)]
    missing = total(generator, still) - (1 - wanted) * total(cascade, still)
    gained = (1 - wanted) * hops[1] - hops[0]  # by each millisecond of a hop
    if gained <= 0:
        return 0.0 if gained == 0 and missing <= 0 else None
    return max(0.0, missing / gained)


def reusable_share(cost: GeneratorCost, prefix_tokens: int) -> float:
    """Share of the encoder's arithmetic that is the same after one more letter, if the prefix keeps its tokens.

    Attention in both directions lets every position depend on the prefix from the first layer's output on. What does
    not are that layer's queries, keys and values of the positions behind the prefix.

    Args:
        cost: of the generator.
        prefix_tokens: positions of the prefix, with the token before it.
    """
    encode = next(work for work in cost.works() if work.stage == "encode")
    behind = max(0, cost.positions - prefix_tokens)
    return 2 * behind * 3 * cost.d_model**2 / encode.flops if cost.encoder_layers else 0.0
