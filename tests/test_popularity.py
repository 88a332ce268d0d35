"""Prefix popularity completion: the order of its steps, ties, and equality with a plain definition."""

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onesug_lite.popularity import PopularityCompletion

CLICKS = [
    ("ap", "apple juice", 3),
    ("ap", "green apple", 5),
    ("ap", "apple juice", 4),  # the same pair again: summed to 7
    ("app", "apple phone", 2),
    ("app", "apple case", 2),
    ("b", "banana", 9),
    ("b", "\U0001f34c bread", 1),
]


def frame(rows):
    return pl.DataFrame(rows, schema={"prefix": pl.String, "query": pl.String, "clicks": pl.Int64}, orient="row")


def plainly(rows, prefix, k):
    """The definition, by brute force."""
    under, total = {}, {}
    for typed, query, clicks in rows:
        under.setdefault(typed, {}).setdefault(query, 0)
        under[typed][query] += clicks
        total[query] = total.get(query, 0) + clicks
    found = []
    for length in range(len(prefix), -1, -1):
        shorter = prefix[:length]
        starting = {query: clicks for query, clicks in total.items() if query.startswith(shorter)}
        for counts in (under.get(shorter, {}), starting):
            found += sorted(counts, key=lambda query: (-counts[query], query))
    return list(dict.fromkeys(found))[:k]


def test_own_clicks_then_completions_then_shorter_prefixes():
    answers = PopularityCompletion(frame(CLICKS)).suggest(["app", "ap", "zzz"], k=16)
    # "app": clicked under it (a tie, so by text), completed, clicked under "ap", then everything by clicks
    assert answers[0] == [
        "apple case",
        "apple phone",
        "apple juice",
        "green apple",
        "banana",
        "\U0001f34c bread",
    ]
    assert answers[1][:4] == ["apple juice", "green apple", "apple case", "apple phone"]
    assert answers[2][:2] == ["banana", "apple juice"]  # nothing starts with z: the most clicked of all


def test_lists_are_of_length_k_and_not_shared():
    completion = PopularityCompletion(frame(CLICKS))
    first = completion.suggest(["a"], k=2)[0]
    assert len(first) == 2
    first.clear()
    assert len(completion.suggest(["a"], k=2)[0]) == 2
    assert len(completion.suggest(["a"], k=4)[0]) == 4  # what is kept for one k does not answer another


def test_as_a_policy_it_reads_the_prefix_column():
    completion = PopularityCompletion(frame(CLICKS))
    assert completion(pl.DataFrame({"prefix": ["b"], "history": [["x"]]})) == completion.suggest(["b"])


def test_odd_prefixes_have_answers():
    completion = PopularityCompletion(frame(CLICKS))
    for prefix in ("", " ", "</s>", "\U0001f34c", "\U0010ffff", "a" * 10_000):
        assert len(completion.suggest([prefix])[0]) == 6


def test_pinyin_is_looked_up_where_nothing_can_be_completed():
    rows = [
        ("ping", "苹果耳机", 3),
        ("ping", "平板", 2),
        ("pingg", "苹果手机", 1),
        ("苹", "苹果耳机", 4),
        ("er", "耳机", 9),
    ]
    answers = PopularityCompletion(frame(rows)).suggest(["pingg", "pingguo", "苹果", "ping"], k=3)
    assert answers[0] == ["苹果手机", "苹果耳机", "平板"]  # typed before, then the shorter "ping"
    assert answers[1] == answers[0]  # never typed: as much of it as was
    assert answers[2] == ["苹果耳机", "苹果手机", "耳机"]  # completed, then the most clicked of all
    assert answers[3] == ["苹果耳机", "平板", "耳机"]


def test_pinyin_prefixes_of_a_chinese_log_lead_to_what_was_clicked(chinese):
    clicks = chinese.click_counts
    pinyin = clicks.filter(~pl.col("prefix").str.contains(r"\p{Han}"))["prefix"].unique().sort().to_list()
    clicked = set(clicks.select("prefix", "query").iter_rows())
    answers = PopularityCompletion(clicks).suggest(pinyin)
    assert len(pinyin) > 100
    assert all((prefix, found[0]) in clicked for prefix, found in zip(pinyin, answers, strict=True))


text = st.text(alphabet="ab \U0010ffff", max_size=4)


@settings(deadline=None, max_examples=200)
@given(
    rows=st.lists(st.tuples(text, text, st.integers(1, 3)), min_size=1, max_size=12),
    prefix=text,
    k=st.integers(1, 5),
)
def test_equals_the_plain_definition(rows, prefix, k):
    assert PopularityCompletion(frame(rows)).suggest([prefix], k) == [plainly(rows, prefix, k)]


def test_the_order_of_the_rows_does_not_matter():
    prefixes = ["a", "ap", "app", "b", ""]
    answers = PopularityCompletion(frame(CLICKS)).suggest(prefixes)
    assert PopularityCompletion(frame(CLICKS[::-1])).suggest(prefixes) == answers


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="no column 'clicks'.*expected prefix"):
        PopularityCompletion(frame(CLICKS).drop("clicks"))
    with pytest.raises(ValueError, match="no rows"):
        PopularityCompletion(frame([]))
    with pytest.raises(ValueError, match="k is 0"):
        PopularityCompletion(frame(CLICKS)).suggest(["a"], k=0)
