"""End to end at smoke size: every stage on a real log, and what must hold between stages."""

import dataclasses

import numpy as np
import polars as pl
import pytest
import torch

from onesug_lite.generator import build_generator, load_generator
from onesug_lite.log import LogError
from onesug_lite.log_files import normalise
from onesug_lite.pipeline import Pipeline
from onesug_lite.policy import OneSugPolicy, PolicyError
from onesug_lite.profiles import PROFILES, sizes
from onesug_lite.store import code_fingerprint
from onesug_lite.tokenizer import PromptError
from onesug_lite.variants import VARIANTS, Variant, variant


def test_profiles_differ_in_sizes_alone():
    assert set(PROFILES) == {"smoke", "lite", "full"}
    for left, right in (("smoke", "lite"), ("lite", "full")):
        for field in dataclasses.fields(PROFILES[left]):
            one, other = getattr(PROFILES[left], field.name), getattr(PROFILES[right], field.name)
            assert type(one) is type(other)
            if dataclasses.is_dataclass(one):
                for part in dataclasses.fields(one):
                    a, b = getattr(one, part.name), getattr(other, part.name)
                    assert a == b or isinstance(a, int | float | tuple), f"{field.name}.{part.name} is no size"


def test_unknown_profile_and_variant_are_named():
    with pytest.raises(ValueError, match="unknown profile 'tiny'; expected one of smoke, lite, full"):
        sizes("tiny")
    with pytest.raises(ValueError, match="unknown variant 'onesugg'"):
        variant("onesugg")
    with pytest.raises(ValueError, match="unknown setting 'prompt.histori'; prompt has vocab_size"):
        sizes("smoke").changed({"prompt.histori": 0})
    with pytest.raises(ValueError, match="unknown setting 'promt.history'; expected STAGE.FIELD with one of pairs"):
        sizes("smoke").changed({"promt.history": 0})
    with pytest.raises(ValueError, match="system is 'oracle'"):
        Variant("x", "x", system="oracle")


def test_training_never_sees_a_later_day(road):
    train, validation, test = (part.requests["time"].dt.date() for part in road.split)
    assert train.max() < validation.min() and validation.max() < test.min()
    assert test.n_unique() == road.sizes.test_days
    tested = set(road.held_out()["request_id"])
    assert not tested & set(road.training_clicks["request_id"])
    assert not tested & set(road.preference_sets.rows["request_id"])


@pytest.mark.parametrize("name", ["sft", "sft_pre", "continued", "onesug"])
def test_every_parameter_of_every_generator_moved(road, name):
    row = VARIANTS[name]
    model, tokenizer = load_generator(road.trained(row).folder / "generator")
    if not row.preferred:
        start = build_generator(road.sizes.generator, tokenizer, road.seed)
    else:
        start, _ = load_generator(road.supervised(row.pre).folder / "generator")
    before = dict(start.named_parameters())
    still = [name for name, value in model.named_parameters() if torch.equal(value, before[name])]
    assert not still


def test_every_row_changes_settings_that_exist():
    for row in VARIANTS.values():
        changed = sizes("smoke").changed(row.changes)
        for path, value in row.changes.items():
            stage, _, field = path.partition(".")
            held = getattr(changed, stage)
            assert (getattr(held, field) if field else held) == value
        assert (changed == sizes("smoke")) == (not row.changes)


def test_training_teaches_a_decoder_only_model_too(road):
    """It answers about as well as its sibling: read with another tokeniser than it was trained with it could not."""
    hits = {name: (road.evaluate(name)["rank"] > 0).mean() for name in ("sft_pre", "decoder_only")}
    assert hits["decoder_only"] > 0.5 * hits["sft_pre"]


def test_a_changed_setting_leaves_other_rows_alone(road):
    assert road.changed({"prompt.history": 1}).sizes.prompt.history == 1 and road.sizes.prompt.history > 1
    assert road.changed({"prompt.history": 0}).search_folder == road.search_folder
    assert road.trained(VARIANTS["known"]).folder == road.trained(VARIANTS["sft_pre"]).folder


def test_known_queries_alone_are_written(road):
    for name in ("known", "reference_free", "shown_list"):
        assert road.evaluate(name)["unknown"].max() == 0
    assert road.evaluate("sft_pre")["unknown"].max() > 0
    with pytest.raises(ValueError, match="'ceiling' is no system"):
        road.policy("ceiling")


SYSTEMS = [name for name, row in VARIANTS.items() if row.system != "ceiling"]


@pytest.mark.parametrize("name", SYSTEMS)
def test_each_system_answers_every_held_out_row(road, name):
    answers = road.evaluate(name)
    assert answers["request_id"].to_list() == road.held_out()["request_id"].to_list()
    assert answers["rank"].is_between(0, 16).all()
    lists = answers["suggestions"].to_list()
    assert all(1 <= len(row) <= 16 and len(set(row)) == len(row) for row in lists)
    found = [row.index(query) + 1 if query in row else 0 for row, query in zip(lists, answers["query"], strict=True)]
    assert found == answers["rank"].to_list()


def test_training_beats_an_untrained_generator(road):
    trained = road.evaluate("sft_pre")
    model = build_generator(road.sizes.generator, road.tokenizer, 1)
    rows = road.held_out().head(100)
    lists = OneSugPolicy(model, road.tokenizer, road.search, road.sizes.prompt, road.sizes.decode)(rows)
    untrained = np.mean([query in row for query, row in zip(rows["query"], lists, strict=True)])
    assert (trained["rank"] > 0).mean() > untrained + 0.1


@pytest.mark.parametrize("name", ["onesug", "decoder_only", "known", "ids"])
def test_policy_survives_saving(road, tmp_path, name):
    policy = road.policy(name)
    policy.save(tmp_path / "model")
    again = OneSugPolicy.load(tmp_path / "model")
    for prefix in ("app", "zzq x"):  # the second was never typed: the encoder has to place it
        assert again.suggest(prefix, ["green tea"]) == policy.suggest(prefix, ["green tea"])
    policy.save(tmp_path / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_policy_refuses_a_folder_that_is_not_its_own(road, tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "mine.txt").write_text("keep")
    with pytest.raises(PolicyError, match="holds no policy"):
        road.policy("sft").save(tmp_path / "letters")
    with pytest.raises(PolicyError, match="onesug train"):
        OneSugPolicy.load(tmp_path / "nothing")


@pytest.mark.parametrize("prefix", ["", "   ", "\u200b\u00a0"])
def test_empty_prefix_is_refused(road, prefix):
    with pytest.raises(PromptError, match="prefix"):
        road.policy("onesug").suggest(prefix)


@pytest.mark.parametrize(
    "prefix", ["a" * 10_000, "🦄🍎", "</s><pad><s>", "<sep> apple <sep>", "苹果", "=1+1", "a\x00b", "APPLE  "]
)
def test_odd_prefixes_get_a_list(road, prefix):
    rows = road.policy("onesug").suggest(prefix, history=["</s>", "🦄" * 500], profile=["<sep>"])
    queries = [query for query, _ in rows]
    assert 1 <= len(queries) <= 16 and len(set(queries)) == len(queries)
    assert not any("<s>" in query or "</s>" in query or "<pad>" in query for query in queries)
    scores = [score for _, score in rows]
    assert scores == sorted(scores, reverse=True)


def test_missing_history_and_profile_are_empty(road):
    policy = road.policy("onesug")
    bare = pl.DataFrame({"prefix": ["app"]})
    null = bare.with_columns(
        history=pl.lit(None, dtype=pl.List(pl.String)), profile=pl.lit(None, dtype=pl.List(pl.String))
    )
    empty = [[query for query, _ in policy.suggest("app")]]
    assert policy(bare) == policy(null) == empty


def test_history_changes_the_list(road):
    policy = road.policy("sft")
    prompts = [
        policy.prompts(pl.DataFrame({"prefix": ["apple"], "history": [[text]]}))[0] for text in ("green tea", "laptop")
    ]
    assert prompts[0] != prompts[1]


def test_texts_are_normalised_and_merged(road):
    log = road.log
    request = log.requests["request_id"][0]
    shown = log.candidates.filter(pl.col("request_id") == request)
    double = shown.head(1).with_columns(
        query=pl.lit("  ＡＰＰＬＥ   Juice"),
        position=pl.lit(None, dtype=pl.Int8),
        behaviour=pl.lit("not_shown"),
    )
    clash = double.with_columns(query=pl.lit("apple juice"), behaviour=pl.lit("query_click"))
    messy = log._replace(candidates=pl.concat([log.candidates, double, clash]))
    clean = normalise(messy).candidates.filter(pl.col("request_id") == request, pl.col("query") == "apple juice")
    assert clean["behaviour"].to_list() == ["query_click"]
    blank = log._replace(requests=log.requests.with_columns(prefix=pl.lit("\u200b")))
    with pytest.raises(LogError, match="no visible character"):
        normalise(blank)


def test_changing_the_beam_does_not_retrain(road):
    wider = dataclasses.replace(road.sizes, decode=dataclasses.replace(road.sizes.decode, beams=20))
    other = Pipeline(road.log_folder, wider, road.seed, road.store.root)
    assert other.supervised(True).folder == road.supervised(True).folder


def test_training_code_does_not_depend_on_figures():
    for stage in ("generator", "preference", "rqvae", "align"):
        names = set(code_fingerprint([stage]))
        assert not names & {"onesug_lite.figures", "onesug_lite.pipeline", "onesug_lite.variants"}
