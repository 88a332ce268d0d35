"""The headroom map and the log's ceiling: what theory orders stays ordered, and a log reads back as it was played."""

import numpy as np
import polars as pl
import pytest

from data_synth import MarketError, build_world, market_config, play_shard, write_shard
from data_synth.catalogue import period_of
from data_synth.ceilings import batches_from_log, best_lists, given_shown, log_ceiling, logged_clicks, value
from data_synth.headroom import (
    RANKINGS,
    Cell,
    calibration,
    headroom_cell,
    headroom_map,
    map_cells,
    open_map,
    over_seeds,
    ranked_lists,
    sample_requests,
)
from data_synth.keystrokes import prefix_keys
from data_synth.oracle import Oracle, Posterior
from data_synth.policies import Batch, recall
from data_synth.posteriors import open_posteriors
from data_synth.world import unplayed_world

SMALL = {"sessions": 1_500, "shoppers": 200, "pilot_sessions": 1_500, "days": 8, "test_days": 2}


@pytest.fixture(scope="module")
def world():
    return build_world(market_config("smoke", **SMALL))


@pytest.fixture(scope="module")
def sample(world):
    return sample_requests(world, 60, np.random.default_rng(3))[0]


@pytest.fixture(scope="module")
def posteriors(world, sample):
    return Oracle(world).posterior(sample.batch)


@pytest.fixture(scope="module")
def selective():
    return headroom_cell(market_config("smoke", **SMALL), 60)


def column(rows: pl.DataFrame, metric: str, name: str = "value") -> dict[str, float]:
    return dict(rows.filter(pl.col("metric") == metric).select("ranking", name).iter_rows())


# ---------------------------------------------------------------- what theory orders
def test_rankings_are_ordered_as_theory_demands(selective):
    clicks, orders, revenue, hits = (column(selective, name) for name in ("clicks", "orders", "revenue", "HR@16"))
    assert clicks["shown"] < clicks["imitation"] < clicks["click, recalled"] < clicks["click"] < clicks["best click"]
    assert clicks["order"] < clicks["click"], "ranking by orders gives clicks away"
    assert orders["click"] < orders["order"] < orders["best order"] and orders["order, recalled"] < orders["order"]
    for goal, best in ((clicks, "best click"), (orders, "best order"), (revenue, "best revenue")):
        assert max(goal, key=goal.get) == best
    assert max(hits, key=hits.get) == "imitation" and hits["click"] < hits["click, recalled"] < hits["imitation"] - 1
    assert "shown" not in hits and hits["imitation"] < 100, "chance shows more than sixteen can hold"


def test_gain_is_the_difference_and_pairing_makes_it_sharper(selective):
    for metric in ("clicks", "MRR@16"):
        own, gain = column(selective, metric), column(selective, metric, "gain")
        assert all(gain[name] == pytest.approx(own[name] - own["imitation"]) for name in own)
    # the two rankings share most of what makes requests differ
    assert column(selective, "clicks", "gain_error")["click, recalled"] < column(selective, "clicks", "error")["click"]


def test_where_exposure_is_even_nothing_is_left_to_correct(selective):
    even = headroom_cell(market_config("smoke", policy="random", **SMALL), 40)
    assert abs(column(even, "clicks", "gain")["click, recalled"]) < 0.15
    assert abs(column(even, "HR@16", "gain")["click, recalled"]) < 0.3
    left = column(selective, "clicks", "gain")["click, recalled"]
    assert left > 0.5 and left > 3 * column(selective, "clicks", "gain_error")["click, recalled"]
    assert column(even, "clicks", "gain")["click"] > 1, "what is never recalled stays out of reach of imitation"


@pytest.mark.parametrize("goal", ["click", "order", "revenue"])
@pytest.mark.parametrize("examination", ["cascade", "position"])
def test_best_list_takes_at_each_place_what_adds_most(world, posteriors, examination, goal):
    """Found again by trying every choice at every place and asking for the value of the whole list."""
    world = world._replace(config=market_config("smoke", examination=examination, position_decay=2.5, **SMALL))
    some = [one for one in posteriors if one.query.size > 30][:3]
    choices = [one.query[:12] for one in some]
    best = best_lists(world, some, goal, choices=choices)
    assert (best[:, 12:] == -1).all()
    for row, (posterior, choice) in enumerate(zip(some, choices, strict=True)):
        tried = np.full((1, choice.size, world.config.shown), -1)
        for place in range(4):
            tried[0, :, :place], tried[0, :, place] = best[row, :place], choice
            worth = getattr(value(world, [posterior], tried), goal)[0]
            worth[np.isin(choice, best[row, :place])] = -1
            assert best[row, place] == choice[worth.argmax()]


def test_imitation_of_each_request_holds_the_most_logged_clicks(world, sample, posteriors):
    lists, logged = ranked_lists(world, sample, posteriors)
    assert lists.shape[1] == len(RANKINGS)
    for pages, (queries, click, _) in zip(lists, logged, strict=True):
        kept = [click[np.isin(queries, page)].sum() for page in pages]
        assert max(kept) == kept[RANKINGS.index("imitation")]
        for page in pages:
            real = page[page >= 0]
            assert np.unique(real).size == real.size, "no list holds a query twice"


def test_several_lists_are_worth_what_each_is(world, sample, posteriors):
    lists, _ = ranked_lists(world, sample, posteriors)
    together = value(world, posteriors, lists)
    for place in (0, 1, 4):
        alone = value(world, posteriors, lists[:, place])
        for one, many in zip(alone, together, strict=True):
            np.testing.assert_allclose(many[:, place], one, atol=1e-12)
    # a single query that is read for sure brings what given_shown says
    top = np.array([posterior.query[0] for posterior in posteriors])
    single = value(world, posteriors, np.c_[top, np.full((top.size, 15), -1)])
    for row, posterior in enumerate(posteriors):
        expected = world.config.glance * given_shown(world, posterior, top[row : row + 1])[:, 0]
        np.testing.assert_allclose([part[row] for part in single], expected, rtol=1e-9)


# ---------------------------------------------------------------- the map
def test_map_is_the_same_whatever_the_jobs_and_kept(tmp_path, monkeypatch):
    tiny = SMALL | {"sessions": 800, "pilot_sessions": 800}
    cells = [Cell("popularity", "patience 0.9", market_config("smoke", seed=seed, **tiny)) for seed in (0, 1)]
    alone = headroom_map(cells, 12, jobs=1)
    assert alone.equals(headroom_map(cells, 12, jobs=2))
    assert alone["seed"].unique().sort().to_list() == [0, 1] and alone["value"].is_finite().all()
    assert not alone.filter(pl.col("seed") == 0)["value"].equals(alone.filter(pl.col("seed") == 1)["value"])
    monkeypatch.setattr("data_synth.headroom.headroom_map", lambda *_: alone)
    assert open_map(cells, tmp_path, 12).equals(alone)
    monkeypatch.setattr("data_synth.headroom.headroom_map", lambda *_: pytest.fail("computed again"))
    assert open_map(cells, tmp_path, 12).equals(alone)
    assert [path.suffix for path in sorted(tmp_path.iterdir())] == [".parquet", ".lock"]
    with pytest.raises(pytest.fail.Exception, match="again"):
        open_map(cells[:1], tmp_path, 12)


def test_cells_differ_in_what_they_are_named_for():
    cells = map_cells("smoke", biases=("patience 0.75", "by position"), seeds=(0, 4))
    assert len(cells) == 4 * 2 * 2 and len({cell.config for cell in cells}) == len(cells)
    named = {(cell.world, cell.bias): cell.config for cell in cells if cell.config.seed == 4}
    assert named["random", "patience 0.75"].policy == "random" and named["random", "patience 0.75"].patience == 0.75
    assert named["production", "by position"].examination == "position"
    assert named["few candidates", "patience 0.75"].recalled < named["popularity", "patience 0.75"].recalled


def test_errors_are_over_seeds_where_there_are_several():
    labels = {"world": "w", "bias": "b", "ranking": "click", "metric": "clicks"}
    rows = [labels | {"seed": seed, "value": 10.0 + gain, "error": 0.5, "gain": gain, "gain_error": 0.1}
            for seed, gain in ((0, 1.0), (1, 3.0))]  # fmt: skip
    both = over_seeds(pl.DataFrame(rows)).row(0, named=True)
    assert (both["gain"], both["value"], both["seeds"]) == (2.0, 12.0, 2)
    assert both["gain_error"] == pytest.approx(1.0)  # std 1.414 over the root of 2
    assert over_seeds(pl.DataFrame(rows[:1])).row(0, named=True)["gain_error"] == 0.1


def test_requests_are_those_of_the_logging_policy_on_the_test_days(world):
    found = sample_requests(world, 100, np.random.default_rng(0))
    assert [part.batch.day for part in found] == [8, 9] and sum(part.intent.size for part in found) == 100
    again = sample_requests(world, 100, np.random.default_rng(0))
    assert all((one.intent == two.intent).all() for one, two in zip(found, again, strict=True))
    played = {day.day: day for day in play_shard(world, 0)[1]}
    for part in found:
        day = played[part.batch.day]
        own = {tuple(page) for page in day.page.shown[~day.at_random]}
        assert all(tuple(page) in own for page in part.shown)
    with pytest.raises(MarketError, match="lower requests"):
        sample_requests(world, 10**6, np.random.default_rng(0))


def test_calibration_tells_a_truthful_oracle_from_a_boastful_one():
    rng = np.random.default_rng(0)
    queries, tier = np.arange(3), np.ones(3) / 3
    intents = rng.choice(3, 4_000, p=[0.7, 0.25, 0.05])
    truthful = [Posterior(queries, np.array([0.7, 0.25, 0.05]), tier)] * 4_000
    boastful = [Posterior(queries, np.array([0.9, 0.08, 0.02]), tier)] * 4_000
    edges = [0.1, 0.5]
    rows = calibration(truthful, intents, edges)
    assert rows["pairs"].to_list() == [4_000] * 3 and rows["told"].to_list() == pytest.approx([0.05, 0.25, 0.7])
    assert ((rows["low"] < rows["told"]) & (rows["told"] < rows["high"])).all()
    rows = calibration(boastful, intents, edges)
    assert not ((rows["low"] < rows["told"]) & (rows["told"] < rows["high"])).any()


# ---------------------------------------------------------------- exposure
@pytest.mark.parametrize("name", ["popularity", "production", "random"])
def test_recall_is_what_pages_are_made_of(world, sample, name):
    period = int(period_of(world.config, sample.batch.day))
    config = market_config("smoke", policy=name, **SMALL)
    policy = world._replace(config=config).policies(period)[0]
    query, ranked = recall(config, world.catalogue, world.indexes[period], name, sample.batch)
    assert ranked == (0 if name == "random" else config.shown - config.exploration)
    page = policy(sample.batch, np.random.default_rng(0))
    for known, shown, rest in zip(query, page.shown, page.not_shown, strict=True):
        steady = known[:ranked][known[:ranked] >= 0]
        assert (shown[np.isin(shown, steady)] == steady).all(), "for sure, and in this order"
        assert np.isin(np.r_[shown, rest], np.r_[known, -1]).all()
        assert np.unique(known[known >= 0]).size == (known >= 0).sum()


@pytest.mark.parametrize("name", ["popularity", "random"])
def test_exposure_by_name_is_that_of_many_drawn_pages(world, sample, posteriors, name):
    some = Batch(sample.batch.day, *(part[:8] for part in sample.batch[1:]))
    config = market_config("smoke", policy=name, **SMALL)
    world = world._replace(config=config)
    policy = world.policies(int(period_of(config, some.day)))[0]
    by_name = logged_clicks(world, some, posteriors[:8], name, np.random.default_rng(2), pages=24)
    drawn = logged_clicks(world, some, posteriors[:8], policy, np.random.default_rng(1), pages=400)
    for one, many in zip(by_name, drawn, strict=True):
        known = np.searchsorted(one[0], many[0])
        assert (one[0][known] == many[0]).all(), "all that pages show is known by name"
        for mine, theirs in zip(one[1:], many[1:], strict=True):
            assert mine.sum() == pytest.approx(theirs.sum(), rel=0.15)
            assert np.corrcoef(mine[known], theirs)[0, 1] > 0.9


# ---------------------------------------------------------------- back from the log
@pytest.mark.parametrize("locale", ["en", "zh"])
def test_log_reads_back_as_it_was_played(tmp_path, locale):
    config = market_config("smoke", **SMALL | {"sessions": 300, "pilot_sessions": 500}, locale=locale)
    world = build_world(config)
    write_shard(world, 0, tmp_path)
    frame = pl.read_parquet(tmp_path / "log" / "requests")
    found = batches_from_log(world, frame.sample(fraction=1, shuffle=True, seed=1))
    rows = np.concatenate([rows for rows, _ in found])
    assert np.sort(rows).tolist() == list(range(len(frame)))
    found = batches_from_log(world, frame)
    played = list(play_shard(world, 0)[1])
    assert [batch.day for _, batch in found] == [day.day for day in played]
    for (rows, batch), day in zip(found, played, strict=True):
        blank = np.take_along_axis(day.batch.points, day.batch.length[:, None] - 1, axis=1)[:, 0] == ord(" ")
        assert (np.diff(rows) == 1).all() and (batch.length == day.batch.length - blank).all()
        assert (batch.history == day.batch.history).all() and (batch.profile == day.batch.profile).all()
        last = batch.length[:, None] - 1
        for told in (np.asarray, prefix_keys):
            mine, theirs = (np.take_along_axis(told(points), last, 1) for points in (batch.points, day.batch.points))
            assert (mine == theirs).all()
    there, then = Oracle(world).posterior(found[-1][1]), Oracle(world).posterior(played[-1].batch)
    assert all((mine.probability == theirs.probability).all() for mine, theirs in zip(there, then, strict=True))


def test_a_strange_log_is_refused_by_name_and_a_strange_search_is_left_out(world, tmp_path):
    write_shard(world, 0, tmp_path)
    frame = pl.read_parquet(tmp_path / "log" / "requests").filter(pl.col("history").list.len() == 8).head(5)
    last = pl.col("history").list.tail(3)
    strange = frame.with_columns(history=pl.concat_list(last, pl.lit(["never heard of"]), last))
    (_, one), *_ = batches_from_log(world, frame)
    (_, two), *_ = batches_from_log(world, strange)
    assert (two.history[:, 1:4] == one.history[:, -3:]).all() and (two.history[:, -3:] == one.history[:, -3:]).all()
    assert (two.history[:, [0, 4]] == -1).all()
    none = batches_from_log(world, frame.with_columns(profile=pl.lit(None, pl.List(pl.String))))
    assert (none[0][1].profile == -1).all()
    for changed, told in (
        ({"time": pl.col("time").dt.offset_by("40d")}, "10 days from 2025-06-01"),
        ({"time": pl.col("time").dt.offset_by("-1y")}, "10 days from 2025-06-01"),
        ({"prefix": pl.lit("")}, "prefix of 1 to 12 characters"),
        ({"prefix": pl.lit("a prefix of many words")}, "prefix of 1 to 12 characters"),
        ({"profile": pl.lit(["likes cats"])}, "likes cats"),
    ):
        with pytest.raises(MarketError, match=told):
            batches_from_log(world, frame.with_columns(**changed))


def test_kept_posteriors_are_the_oracles_own_and_found_once(world, tmp_path, monkeypatch):
    write_shard(world, 0, tmp_path)
    frame = pl.read_parquet(tmp_path / "log" / "requests").sample(40, shuffle=True, seed=1)
    assert frame["time"].dt.date().n_unique() > 4  # found day by day, and given back in the frame's order
    kept = open_posteriors(world.config, frame, tmp_path / "kept")
    for rows, batch in batches_from_log(world, frame):
        for mine, theirs in zip((kept[row] for row in rows), Oracle(world).posterior(batch), strict=True):
            assert all(a.dtype == b.dtype and (a == b).all() for a, b in zip(mine, theirs, strict=True))
    # what they are worth takes the words of the market alone, and no policy's counts
    best, bare = best_lists(world, kept), unplayed_world(world.config)
    assert bare.indexes == [] and (best_lists(bare, kept) == best).all()
    assert all((a == b).all() for a, b in zip(value(bare, kept, best), value(world, kept, best), strict=True))
    with pytest.raises(MarketError, match="10 days from 2025-06-01"):
        open_posteriors(world.config, frame.with_columns(time=pl.col("time").dt.offset_by("40d")), tmp_path / "kept")
    assert [path.suffix for path in (tmp_path / "kept").iterdir() if path.suffix != ".lock"] == [".parquet"]
    monkeypatch.setattr("data_synth.posteriors.Oracle", None)  # nobody asks it again
    again = open_posteriors(world.config, frame, tmp_path / "kept")
    assert all((a.query == b.query).all() for a, b in zip(kept, again, strict=True))
    for other, config in ((frame.head(39), world.config), (frame, market_config("smoke", **SMALL, glance=0.6))):
        with pytest.raises(TypeError):
            open_posteriors(config, other, tmp_path / "kept")


def test_ceiling_of_a_log_is_what_it_promises_and_no_ranking_beats_it(world, tmp_path):
    write_shard(world, 0, tmp_path)
    clicks = (
        pl.read_parquet(tmp_path / "log" / "candidates")
        .filter(pl.col("behaviour").is_in(["query_click", "item_click", "order"]))
        .join(pl.read_parquet(tmp_path / "log" / "requests"), on="request_id")
        .sort("time", "request_id")
        .tail(260)
    )
    rows = log_ceiling(world, clicks, clicks["query"].to_list())
    hit, reciprocal = (rows["rank"] > 0).to_numpy(), 1 / rows["rank"].to_numpy().clip(1)
    for real, told in ((hit.astype(float), rows["hit"]), (hit * reciprocal, rows["reciprocal"])):
        error = np.std(real - told.to_numpy()) / np.sqrt(real.size)
        assert abs(real.mean() - told.mean()) < 3.5 * error
    assert rows["rank"].is_between(0, 16).all() and (rows["reciprocal"] <= rows["hit"] + 1e-12).all()
    by_chance = (clicks["policy"] == "random").to_numpy()
    assert by_chance.any() and rows["hit"].to_numpy()[by_chance].mean() < rows["hit"].to_numpy()[~by_chance].mean()
    unnamed = log_ceiling(world, clicks.drop("policy"), clicks["query"].to_list())
    assert (unnamed["hit"].to_numpy()[~by_chance] > 0.5).all() and not unnamed["hit"].equals(rows["hit"])
    # what most probably was in mind is another ranking, and hits less
    hits = []
    for at, batch in batches_from_log(world, clicks):
        target = world.catalogue.find(clicks["query"][at].to_list())
        hits += [query in one.query[:16] for query, one in zip(target, Oracle(world).posterior(batch), strict=True)]
    assert hit.mean() > np.mean(hits) + 0.03
    orders = clicks.filter(pl.col("behaviour") == "order")
    of_orders = log_ceiling(world, orders, orders["query"].to_list(), "order")
    assert len(of_orders) == len(orders) and (of_orders["rank"] > 0).mean() > 0.8
    assert not of_orders["hit"].equals(log_ceiling(world, orders, orders["query"].to_list())["hit"])
