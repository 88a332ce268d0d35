r"""The oracle: what a request's shopper has in mind, given all that a model may see, and what that is worth.

A model sees a prefix, earlier searches, a profile and the day. The oracle knows the market besides, not the shopper:

.. math::

    P(q \mid p, h, z) \;\propto\; \Bigl[\tfrac{r}{|h|} \textstyle\sum_j [h_j = q] + (1-r) \sum_{\ell} P(\ell \mid h, z)
    P(q \mid \ell)\Bigr] \; \sum_f P(f \mid q)\, v_f(p \mid q)

with :math:`r` the share of repeats, :math:`\ell` the shopper's latents (department shares, favourites, audience,
tier), :math:`f` the form typed and :math:`v_f` the expected number of requests at prefix :math:`p`, which counts that
the search has not ended at the lists shown for shorter prefixes. Near-exact, in four places: a search in the history is
taken for what was in mind with the pilot's share of such searches and otherwise as uninformative; an equal search
counts once; a mended slip is taken to have been shown the lists of the right spelling; lists before this one are
averaged over a few draws of the policy. What this leaves is measured by its calibration on fresh sessions.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np

from .catalogue import period_of
from .config import MarketError
from .keystrokes import FORMS, HEAD, MISSPELT, WRITTEN, form_probability, prefix_keys, typed_heads
from .policies import Batch, Policy
from .responses import click_places, click_probability
from .shoppers import TIER_SHARE, favourite_weights
from .world import World

LIMIT = 600_000  # queries of a pool whose every form is listed


class Posterior(NamedTuple):
    """What one request's shopper may have in mind, most probable first."""

    query: np.ndarray  # (K,)
    probability: np.ndarray  # (K,) sums to at most 1; what is missing lies on queries that were cut off
    tier: np.ndarray  # (tiers,) probability of each price tier


class Latents(NamedTuple):
    """What history and profile tell of a shopper's latents, for N requests."""

    department: np.ndarray  # (N, D) expected share
    favourite: np.ndarray  # (N, D, tiers, B) probability of the favourite brand given the tier
    attribute: np.ndarray  # (N, S, A) probability of the favourite attribute
    kind: np.ndarray  # (N, audiences, tiers) joint probability


class Oracle:
    """The posterior of a market's requests.

    Args:
        world: the market; its own logging policy wrote the lists that the searches went on from.
        keep: candidates of a request that are followed in detail, by probability.

    Raises:
        MarketError: the pool is too large to be listed.
    """

    def __init__(self, world: World, keep: int = 2_000):
        if world.catalogue.size > LIMIT:
            raise MarketError(
                f"the pool has {world.catalogue.size:,} queries; the oracle lists every way of typing them, up to "
                f"{LIMIT:,}: lower types, brands, styles, attributes or modifiers"
            )
        self.world, self.config, self.catalogue = world, world.config, world.catalogue
        self.keep = keep

    # ------------------------------------------------------------ what can be typed
    @cached_property
    def _forms(self) -> list[tuple[int, float, np.ndarray, np.ndarray, list[tuple[np.ndarray, np.ndarray]]]]:
        """Every form in every script: its number, the script's share, probability and end of each query's text, and, by
        number of characters, all keys in ascending order with their queries."""
        catalogue, typing = self.catalogue, self.world.typing
        queries = np.arange(catalogue.size)
        probability = form_probability(typing, catalogue, queries)
        found = []
        for script in range(typing.scripts):
            for form in range(len(FORMS)):
                some = np.flatnonzero(probability[:, form] > 0)
                full = np.full(some.size, form), np.full(some.size, script)
                points, length = typed_heads(typing, catalogue, some, *full)
                keys = prefix_keys(points)
                end = np.zeros(catalogue.size, dtype=np.int64)
                end[some] = np.minimum(length, self.config.max_prefix)
                by_length = []
                for stop in range(1, HEAD + 1):
                    there = np.flatnonzero(end[some] >= stop)
                    order = there[np.argsort(keys[there, stop - 1], kind="stable")]
                    by_length.append((keys[order, stop - 1], some[order]))
                found.append((form, float(typing.script_share[script]), probability[:, form], end, by_length))
        return found

    @cached_property
    def _not_written(self) -> np.ndarray:
        """(Q,) probability of typing each query otherwise than as written."""
        everything = form_probability(self.world.typing, self.catalogue, np.arange(self.catalogue.size))
        return everything[:, 1:].sum(axis=1)

    def _matches(self, key: np.uint64, length: int) -> list[tuple[int, np.ndarray, np.ndarray, int, np.ndarray]]:
        """Ways of typing a prefix: form, queries, probability of form and script, characters typed, texts' ends."""
        found = []
        for form, share, probability, end, by_length in self._forms:
            for stop in (length, length + 1):  # one more where a blank follows, which the log strips
                if stop > self.config.max_prefix:
                    continue
                keys, queries = by_length[stop - 1]
                low, high = np.searchsorted(keys, key, "left"), np.searchsorted(keys, key, "right")
                if high > low:
                    some = queries[low:high]
                    found.append((form, some, share * probability[some], stop, end[some]))
        return found

    # ------------------------------------------------------------ who it may be
    def latents(self, batch: Batch) -> Latents:
        """What history and profile tell, for N requests."""
        config, catalogue = self.config, self.catalogue
        count, departments = batch.length.size, catalogue.department_share.size
        there = _first_of_equal(batch.history)
        n, h = np.nonzero(there)
        parts = catalogue.split(batch.history[n, h])
        row, department, shelf = (
            catalogue.row[parts.type],
            catalogue.type_department[parts.type],
            catalogue.type_shelf[parts.type],
        )
        sure = self.world.exact
        told = batch.profile[:, 0] >= 0

        # Department shares: Dirichlet, with one more draw that the profile tells of, true or not.
        weight = np.tile(config.department_concentration * catalogue.department_share, (count, 1))
        np.add.at(weight, (n, department), 1.0)
        mean = weight / weight.sum(axis=1, keepdims=True)
        place = np.maximum(batch.profile[:, 2], 0)
        rows = np.arange(count)
        more = weight.copy()
        more[rows, place] += 1.0
        more /= more.sum(axis=1, keepdims=True)
        true = config.profile_reliability * mean[rows, place]
        true = np.where(told, true / (true + (1 - config.profile_reliability) / departments), 0.0)[:, None]
        share = true * more + (1 - true) * mean

        # Favourite brands by tier; audience and tier together.
        brand = catalogue.brand.mean(axis=0)  # (rows, tiers, B, B), launched ones included
        seen = brand[row, :, :, parts.brand]  # (E, tiers, B favourite)
        evidence = sure * seen + (1 - sure) * seen[:, :, :1]
        likelihood = np.zeros((count, departments, TIER_SHARE.size, catalogue.sizes[1]))
        np.add.at(likelihood, (n, department), np.log(evidence + 1e-12))
        liked = np.log(favourite_weights(catalogue) + 1e-300).transpose(0, 1, 2) + likelihood
        random = np.maximum(catalogue.favourites.sum(axis=1), 1)[place]
        own = np.eye(catalogue.sizes[1])[np.maximum(batch.profile[:, 3], 0)]
        own = config.profile_reliability * own + ((1 - config.profile_reliability) / random)[:, None]
        liked[rows[told], place[told]] += np.log(own[told] + 1e-300)[:, None, :]
        top = liked.max(axis=3, keepdims=True)
        mass = np.exp(liked - top)
        by_tier = (np.log(mass.sum(axis=3)) + top[..., 0]).sum(axis=1)  # (N, tiers)
        words = catalogue.modifier.mean(axis=0)[row, :, :, parts.modifier]  # (E, audiences, tiers)
        words = sure * words + (1 - sure) * words.mean(axis=(1, 2), keepdims=True)
        audiences = words.shape[1]
        joint = np.zeros((count, audiences, TIER_SHARE.size))
        np.add.at(joint, n, np.log(words + 1e-12))
        joint += by_tier[:, None, :] + np.log(TIER_SHARE)
        for axis, names in ((0, audiences), (1, TIER_SHARE.size)):
            guess = np.full((count, names), (1 - config.profile_reliability) / names)
            guess[rows, np.maximum(batch.profile[:, axis], 0)] += config.profile_reliability
            guess = np.log(np.where(told[:, None], guess, 1.0))
            joint += guess[:, :, None] if axis == 0 else guess[:, None, :]
        joint = np.exp(joint - joint.max(axis=(1, 2), keepdims=True))

        # Favourite attributes of the shelves.
        table = catalogue.attribute[row, :, parts.attribute]  # (E, A favourite)
        shelves, attributes = int(catalogue.type_shelf.max()) + 1, catalogue.sizes[3]
        fond = np.zeros((count, shelves, attributes))
        np.add.at(fond, (n, shelf), np.log(sure * table + (1 - sure) * table[:, :1] + 1e-12))
        fond = np.exp(fond - fond.max(axis=2, keepdims=True)) * (np.arange(attributes) > (0 if attributes > 1 else -1))
        return Latents(
            share,
            mass / mass.sum(axis=3, keepdims=True),
            fond / fond.sum(axis=2, keepdims=True),
            joint / joint.sum(axis=(1, 2), keepdims=True),
        )

    def _taste(self, latents: Latents, number: int, day: int, queries: np.ndarray) -> np.ndarray:
        """Probability of queries for one request's shopper, repeats left aside."""
        catalogue, period = self.catalogue, int(period_of(self.config, day))
        parts = catalogue.split(queries)
        row, department = catalogue.row[parts.type], catalogue.type_department[parts.type]
        kind = latents.kind[number]  # (audiences, tiers)
        words = np.einsum("rats,at->trs", catalogue.modifier[period], kind)  # (tiers, rows, M)
        home = catalogue.type_department if catalogue.row[-1] else np.zeros(1, dtype=np.int64)
        brand = catalogue.brand[period]  # (rows, tiers, B favourite, B)
        own = latents.favourite[number][home]  # (rows, tiers, B favourite)
        brands = np.einsum("rtf,rtfb->trb", own, brand) if catalogue.sizes[1] > 1 else np.ones((TIER_SHARE.size, 1, 1))
        shelf = catalogue.type_shelf[parts.type]
        attribute = np.einsum(
            "ef,ef->e", latents.attribute[number][shelf], catalogue.attribute[row, :, parts.attribute]
        )
        return (
            latents.department[number][department]
            * catalogue.type_share[day][parts.type]
            * catalogue.style[row, parts.style]
            * attribute
            * (brands[:, row, parts.brand] * words[:, row, parts.modifier]).sum(axis=0)
        )

    # ------------------------------------------------------------ what it may be
    def posterior(
        self, batch: Batch, policy: Policy | None = None, rng: np.random.Generator | None = None
    ) -> list[Posterior]:
        """What each request's shopper may have in mind.

        Args:
            batch: N requests of one day.
            policy: that answered the requests before these; the market's own by default.
            rng: draws the policy's chance places.

        Returns:
            N posteriors, each cut off after ``keep`` queries.
        """
        rng = rng or np.random.default_rng(0)
        policy = policy or self.world.policies(int(period_of(self.config, batch.day)))[0]
        latents = self.latents(batch)
        keys = prefix_keys(batch.points)
        stripped = batch.length - (
            np.take_along_axis(batch.points, batch.length[:, None] - 1, axis=1)[:, 0] == ord(" ")
        )
        earlier = self._earlier_pages(batch._replace(length=stripped), policy, rng)
        return [
            self._one(batch, latents, number, keys[number, stripped[number] - 1], int(stripped[number]), earlier)
            for number in range(batch.length.size)
        ]

    def _earlier_pages(self, batch: Batch, policy: Policy, rng) -> np.ndarray:
        """(HEAD + 1, pages, N, K) lists that the policy shows at every length so far; -1 where a request is shorter."""
        pages = np.full((HEAD + 1, 2, batch.length.size, self.config.shown), -1)
        for length in range(1, int(batch.length.max(initial=0)) + 1):
            some = np.flatnonzero(batch.length >= length)
            part = Batch(
                batch.day, batch.points[some], np.full(some.size, length), batch.history[some], batch.profile[some]
            )
            for draw in range(2):
                shown = policy(part, rng).shown
                pages[length, draw, some, : shown.shape[1]] = shown
        return pages

    def _one(self, batch: Batch, latents: Latents, number: int, key, length: int, earlier) -> Posterior:
        config = self.config
        found = self._matches(key, length)
        if not found:
            return Posterior(np.empty(0, np.int64), np.empty(0), latents.kind[number].sum(axis=0))
        queries, where = np.unique(np.concatenate([some for _, some, *_ in found]), return_inverse=True)
        taste = self._taste(latents, number, batch.day, queries)
        past = batch.history[number]
        past = past[past >= 0]
        if past.size:
            taste = (1 - config.repeat) * taste
            np.add.at(taste, np.minimum(np.searchsorted(queries, past), queries.size - 1),
                      config.repeat / past.size * np.isin(past, queries))  # fmt: skip
        typed = np.bincount(where, np.concatenate([weight for _, _, weight, *_ in found]), queries.size)
        rough = taste * typed
        kept = np.sort(np.argsort(-rough, kind="stable")[: self.keep])
        stay = self._staying(queries[kept], earlier[1 : length + 1, :, number])
        visits = np.zeros(queries.size)
        slips, other = self.world.typing.share[MISSPELT], self._not_written
        at, place = 0, np.full(queries.size, -1)
        place[kept] = np.arange(kept.size)
        for form, some, weight, stop, ends in found:
            row = where[at : at + some.size]
            at += some.size
            mine = place[row] >= 0
            going = stay[place[row[mine]]]
            share = weight[mine]
            if form != MISSPELT:
                visits[row[mine]] += share * self._visits(going, stop, ends[mine])[0]
                if form != WRITTEN:
                    continue
                share = share * slips / (1 - other[some[mine]])  # begun as a slip and mended since
            slipped, mended = self._visits(going, stop, ends[mine], config.notice)
            visits[row[mine]] += share * (slipped if form == MISSPELT else mended)
        weight = taste * visits
        cut = np.ones(queries.size, dtype=bool)
        cut[kept] = False
        usual = weight[kept].sum() / max(rough[kept].sum(), 1e-300)
        total = weight.sum() + rough[cut].sum() * usual
        order = np.argsort(-weight, kind="stable")[: kept.size]
        order = order[weight[order] > 0]
        return Posterior(queries[order], weight[order] / max(total, 1e-300), latents.kind[number].sum(axis=0))

    def _staying(self, queries: np.ndarray, pages: np.ndarray) -> np.ndarray:
        """(K, L) probability that a search goes on after each of L lists (L, draws, places), given what is in mind."""
        config = self.config
        shown, where = np.unique(pages, return_inverse=True)
        table = click_probability(config, self.catalogue, queries, shown[None, :])  # each query once
        click = click_places(config, table[:, where.reshape(pages.shape)]).sum(axis=3).mean(axis=2)  # (K, L)
        return (1 - config.glance * click) * (1 - config.give_up)

    def _visits(
        self, stay: np.ndarray, stop: int, ends: np.ndarray, notice: float = 0.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """(K,) expected requests after exactly ``stop`` characters of a text that ends at ``ends``.

        With a probability of noticing a slip before each later request: those not noticed yet, and those mended.
        """
        burst = self.world.typing.burst
        tail = np.r_[1.0, 1.0 - np.cumsum(burst)]  # probability of more than 0, 1, ... characters
        first = np.zeros((stay.shape[0], stop + 1))
        mended = np.zeros_like(first)
        for length in range(1, stop + 1):
            first[:, length] = np.where(length == ends, tail[length - 1], burst[length - 1])
            for before in range(1, length):
                going = stay[:, before - 1] * burst[length - before - 1]
                first[:, length] += first[:, before] * going * (1.0 - notice)
                mended[:, length] += (first[:, before] * notice + mended[:, before]) * going
        return first[:, stop], mended[:, stop]


def _first_of_equal(history: np.ndarray) -> np.ndarray:
    """(N, H) bool: a search that none of the ones before it equals."""
    same = (history[:, :, None] == history[:, None, :]) & np.tri(history.shape[1], k=-1, dtype=bool)
    return (history >= 0) & ~same.any(axis=2)
