"""Real lists of queries: broken rows are counted at their lines, no bytes crash, tastes hang on the seed alone."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sklearn.utils import extmath
from threadpoolctl import threadpool_info, threadpool_limits

from data_synth.config import MarketError
from data_synth.query_list import KINDS, MAX_COUNT, read_query_list
from data_synth.query_tastes import _name_departments, induce_tastes
from onesug_lite.tokenizer import clean

ROOT = Path(__file__).resolve().parents[1]
PLENTY = [f"good query {place}" for place in range(60)]  # enough for a market

# How a cell or a count looks that is refused; every form alone must be enough.
BROKEN = {
    "not_utf8": [b"caf\xe9", b"\xff", b"\xed\xa0\x80", b"\xf0\x9f\x91 shoes", "lost \ufffd mark".encode()],
    "nul": [b"red\x00shoes", b"\x1b[31mshoes", b"bell\x07", b"a\x7f", "c1 \x85 mark".encode()],
    "blank": [b"", b"   ", b"\t", "\u200b\u200d".encode(), "\u3000".encode(), "\ufe0f\u0301".encode(), b"\xe3\x85\xa4"],
    "too_long": [b"x" * 201, "\u3300".encode() * 60, b"word " * 1000, b"y" * 140_000],
    "formula": [
        b'"=HYPERLINK(""http://x.example"",""shoes"")"',
        b"=1+1",
        b"=A1",
        b"='sheet'",
        b"= sum(a1) + 1",
        b"+cmd|' /C calc'!A0",
        b"-2+3+cmd|' /C calc'!A0",
        b"@SUM(1+9)*cmd|' /C calc'!A0",
        b"-a1+b2",
        b"+data!A1",
        "\uff1dsum(a1)".encode(),
        b"  =1+1",
    ],
    "control_token": [
        *(b"<s>", b"shoes </s>", b"<pad>", b"<sep>", b"<item>", b"<UNK>", b"[CLS] red", b"[sep]", b"<|endoftext|>"),
        *(b"[MASK]", b"<extra_id_0>", b"<|im_start|>", "\uff1cs\uff1e".encode(), "<s\u200b>".encode()),
    ],
    "bad_count": [
        *(b"x,", b"x,-1", b"x,0", b"x,many", b"x,1.5", b"x,1e3", b"x,nan", b"x,99999999999", b"x", b"x,\xff"),
        b"x," + b"9" * 5000,
        "x,\u0661".encode(),
    ],
}
PLAIN = [
    *(
        "-5 degree sleeping bag",
        "@home",
        "+size dresses (women)",
        "+1-800-flowers",
        "+1-800-555",
        "-30% off",
        "- a1",
        "+a4 paper",
    ),
    *("= sign sticker", "=) mug", '5" tablet', "c++ (book)", "a=b(c)", "<b", "size < s >", "s", "[new] shoes", "???"),
    *("-5 degree (blue)", "@home!", "wi-fi | router", "\u041d\u043e\u0443\u0442\u0431\u0443\u043a", "\U0001f45f"),
]


def write(path: Path, data: bytes | list, head: str = "query") -> Path:
    rows = data if isinstance(data, bytes) else "".join(f"{row}\n" for row in [head, *data]).encode()
    path.write_bytes(rows)
    return path


def write_broken(path: Path, rows: int, share: float, seed: int):
    """A list of that many rows with that share of broken ones, and what reading it must find."""
    rng = random.Random(seed)
    kinds = dict.fromkeys(KINDS, 0)
    for kind in rng.choices(list(KINDS), weights=range(1, 8), k=int(rows * share) - len(KINDS)) + list(KINDS):
        kinds[kind] += 1
    plan = [kind for kind, count in kinds.items() for _ in range(count)]
    plan += [None] * (rows - len(plan))
    rng.shuffle(plan)
    out, line, total, lines = [b"query,note,count\n"], 2, {}, {kind: [] for kind in KINDS}
    for kind in plan:
        if kind is None:
            query, count = f"item {rng.randrange(rows // 2)} for sale", rng.randrange(1, 100)
            total[query] = total.get(query, 0) + count
            blanks = rng.choice([" ", "  ", "\n", "\r\n"])  # a line end inside quotes is white space
            row = f'"{query.replace(" ", blanks)}","say ""hi""\n",{count}\n'.encode()
        else:
            cell = rng.choice(BROKEN[kind])
            lines[kind].append(line)
            query, _, count = cell.partition(b",") if kind == "bad_count" else (cell, b"", b"7")
            row = query + b",caf\xe9," + count + b"\n"  # bad bytes in a column that is not read cost nothing
        out.append(row)
        line += row.count(b"\n")
    path.write_bytes(b"".join(out))
    return kinds, lines, total


def test_every_broken_row_is_counted_at_its_line(tmp_path):
    kinds, lines, total = write_broken(tmp_path / "list.csv", 5000, 0.01, seed=0)
    found = read_query_list(tmp_path / "list.csv")
    assert found.report.refused == kinds and list(kinds) == list(KINDS)
    assert sum(kinds.values()) == 50 and min(kinds.values()) >= 1
    for kind, examples in found.report.examples.items():
        assert [line for line, _ in examples] == lines[kind][:5]
        assert all(view.isascii() and view.isprintable() and len(view) <= 63 for _, view in examples)
    assert (found.report.rows, found.report.kept, found.report.merged) == (5000, 4950, 4950 - len(total))
    assert dict(zip(found.text, found.count.tolist(), strict=True)) == total
    order = [(-count, text) for text, count in zip(found.text, found.count.tolist(), strict=True)]
    assert order == sorted(order) and found.count.dtype == np.int64

    head, *rest = str(found.report).splitlines()
    assert head.startswith("5000 rows: 4950 kept") and [row.split()[0] for row in rest] == list(KINDS)
    for row, (kind, count) in zip(rest, kinds.items(), strict=True):
        assert row.split()[1] == str(count) and row.endswith(", ".join(map(str, lines[kind][:5])))


@pytest.mark.parametrize("kind", KINDS)
def test_every_form_of_a_kind_is_refused(tmp_path, kind):
    for form in BROKEN[kind]:
        row = form if kind == "bad_count" else form + b",1"
        rows = [f"{query},1".encode() for query in PLENTY]
        rows.insert(30, row)
        path = write(tmp_path / "list.csv", b"query,count\n" + b"\n".join(rows) + b"\n")
        found = read_query_list(path)
        assert {kind: n for kind, n in found.report.refused.items() if n} == {kind: 1}, form[:40]
        assert found.report.examples[kind][0][0] == 32 and sorted(found.text) == sorted(PLENTY)
        with pytest.raises(MarketError, match=f"line 32: {kind}, .*without strict"):
            read_query_list(path, strict=True)


def test_plain_queries_that_look_odd_are_kept(tmp_path):
    found = read_query_list(write(tmp_path / "list.csv", [*PLENTY, *PLAIN]), strict=True)
    assert sorted(found.text) == sorted(PLENTY + [text.lower() for text in PLAIN])


def test_limits_are_inclusive(tmp_path):
    rows = [f"{query},1" for query in PLENTY] + [f"{'x' * 200},{MAX_COUNT}", "shoes,0012.0"]
    found = read_query_list(write(tmp_path / "list.csv", rows, "query,count"), strict=True)
    assert (found.text[0], found.count[0], found.text[1], found.count[1]) == ("x" * 200, MAX_COUNT, "shoes", 12)
    with pytest.raises(MarketError, match="too_long.*max_characters"):
        read_query_list(tmp_path / "list.csv", strict=True, max_characters=199)
    hangul = "\u1112\u1161\u11ab" * 150  # 450 characters that NFKC makes 150
    assert "\ud55c" * 150 in read_query_list(write(tmp_path / "list.csv", [*PLENTY, hangul])).text


def test_equal_queries_are_merged_and_their_counts_added(tmp_path):
    same = [
        "Red  Shoes,2",
        "\uff32ED\u3000shoes,3",
        "red\u200b shoes ,4",
        "cafe\u0301,1",
        "CAF\u00c9,1",
        '"red\nshoes",5',
    ]
    found = read_query_list(write(tmp_path / "list.csv", [*same, *(f"{query},1" for query in PLENTY)], "query,count"))
    assert list(zip(found.text[:2], found.count[:2], strict=True)) == [("red shoes", 14), ("caf\u00e9", 2)]
    assert (found.report.merged, found.report.kept, len(found.text)) == (4, 66, 62)


@settings(max_examples=300, deadline=None)
@given(st.text(min_size=1, max_size=60))
@example("\u03a3\u0399\u03a3 \u0130 \u1e9e \ufdfa \u212b")
@example("J\u030c e\u200b\u0301")
def test_a_kept_query_is_what_the_model_reads(tmp_path_factory, text):
    path = write(
        tmp_path_factory.getbasetemp() / "clean.csv", ['"{}"'.format(text.encode("utf-8", "replace").decode())]
    )
    with path.open("ab") as file:
        file.write("\n".join(PLENTY).encode())
    for query in read_query_list(path).text:
        assert query == clean(query)


# ---------------------------------------------------------------- the forms of a file
FORMS = {
    "header": lambda rows: "query\n" + "\n".join(rows),
    "no header": lambda rows: "\n".join(rows) + "\n",
    "mark": lambda rows: "\ufeffQuery\n" + "\n".join(rows),
    "mark, no header": lambda rows: "\ufeff" + "\n".join(rows),
    "windows": lambda rows: "\r\n".join(["text", *rows]) + "\r\n",
    "old mac": lambda rows: "\r".join(["keyword", *rows]),
    "named otherwise": lambda rows: "\n".join(
        ["id,volume,Search Term", *(f"{n},1,{row}" for n, row in enumerate(rows))]
    ),
    "best name wins": lambda rows: "\n".join(["text,query", *(f"other,{row}" for row in rows)]),
    "unknown name": lambda rows: "\n".join(["id,frequency,phrase", *(f"{n},1,{row}" for n, row in enumerate(rows))]),
    "table, no header": lambda rows: "\n".join(f"{n},{row},x" for n, row in enumerate(rows)),
    "semicolons": lambda rows: "\n".join(["query;count", *(f"{row};1" for row in rows)]),
    "tabs": lambda rows: "\n".join(["count\tquery", *(f"1\t{row}" for row in rows)]),
    "quoted": lambda rows: "\n".join(['"query"', *(f'"{row}"' for row in rows)]),
    "late header": lambda rows: "\n".join(["", "query", *rows]),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_a_file(tmp_path, form):
    path = write(tmp_path / "list.csv", FORMS[form](PLENTY).encode())
    found = read_query_list(path)
    assert found.text == sorted(PLENTY) and set(found.count.tolist()) == {1}
    late = form == "late header"  # the empty line before it is a row with nothing in it
    assert (found.report.rows, found.report.kept) == (60 + late, 60)


def test_commas_in_a_list_of_one_column_are_kept(tmp_path):
    for head in ("query\n", ""):
        found = read_query_list(write(tmp_path / "list.csv", (head + "\n".join([*PLENTY, "shoes, red, 42"])).encode()))
        assert "shoes, red, 42" in found.text
    pairs = [f"{query}, red" for query in PLENTY]  # most lines, but not nine of ten: still no table
    found = read_query_list(write(tmp_path / "list.csv", "\n".join([*PLENTY[:20], *pairs]).encode()))
    assert sorted(found.text) == sorted([*PLENTY[:20], *pairs])


def test_counts_are_never_taken_for_queries(tmp_path):
    rows = [f"7,{number}" for number in range(100, 160)]  # part numbers: no column holds words
    found = read_query_list(write(tmp_path / "list.csv", rows, "frequency,part"))
    assert found.text == [str(number) for number in range(100, 160)] and set(found.count.tolist()) == {7}


def test_a_long_run_of_marks_costs_no_time(tmp_path):
    path = write(tmp_path / "list.csv", [*PLENTY, "a" + "\u0301\u0323" * 60_000])
    start = time.process_time()
    assert read_query_list(path).report.refused["too_long"] == 1
    assert time.process_time() - start < 5, "NFKC takes half a minute for it"


def test_named_columns(tmp_path):
    rows = [f"{query},no,{place + 1},9" for place, query in enumerate(PLENTY)]
    path = write(tmp_path / "list.csv", rows, "Suchbegriff,query,Anzahl,count")
    found = read_query_list(path, column="Suchbegriff", count_column="anzahl")
    assert found.text == PLENTY[::-1] and found.count.tolist() == list(range(60, 0, -1))
    assert set(read_query_list(path, column="suchbegriff").count.tolist()) == {9}, "a known name of counts is found"
    with pytest.raises(MarketError, match="lacks a column of .*'clicks'.*'Suchbegriff', 'query', 'Anzahl', 'count'"):
        read_query_list(path, column="Suchbegriff", count_column="clicks")


def test_lines_are_right_after_quoted_line_ends(tmp_path):
    rows = ['"two\nlines"', "<s>", '"three\r\nlines\nlong"', "", '"=1+1\n\n"', '"</s>', *PLENTY, "[CLS]"]
    found = read_query_list(write(tmp_path / "list.csv", rows))
    at = {kind: [line for line, _ in rows] for kind, rows in found.report.examples.items()}
    assert (at["control_token"], at["blank"], at["formula"]) == ([4, 12, 73], [8], [9])
    assert {"two lines", "three lines long"} <= set(found.text)


@pytest.mark.parametrize(
    "row", ['"never closed', '"closed" and on', 'x,"never closed', '"', '"a""', '""b', 'a"b"c', '"a\\"']
)
def test_a_stray_quote_costs_its_own_row_only(tmp_path, row):
    for head in ("query", "query,count"):
        rows = [f"{query},1" if "," in head else query for query in PLENTY]
        found = read_query_list(write(tmp_path / "list.csv", [*rows[:30], row, *rows[30:]], head))
        assert set(PLENTY) <= set(found.text) and found.report.rows == 61


# ---------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "cannot be read .*check the path"),
        (b"", "is empty"),
        (b"\xef\xbb\xbf\r\n \n", "is empty"),
        (b'"",,\n', "is empty"),
        (b"query\n", "no usable row"),
        (b"query,count\nshoes,0\n", "no usable row(.|\n)*bad_count +1  line 2"),
        ("\n".join(PLENTY[:49] * 2).encode(), "49 distinct usable queries, too few to make a market"),
        ("\n".join(PLENTY).encode("utf-16"), "UTF-16"),
    ],
)
def test_a_file_of_no_use_is_an_error(tmp_path, data, message):
    path = tmp_path / "list.csv"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(MarketError, match=message):
        read_query_list(path)


def test_fifty_queries_are_enough_and_a_folder_is_no_file(tmp_path):
    assert len(read_query_list(write(tmp_path / "list.csv", PLENTY[:50])).text) == 50
    for path in (tmp_path, "no\x00path"):
        with pytest.raises(MarketError, match="cannot be read"):
            read_query_list(path)


ANY = st.one_of(
    st.binary(max_size=300),
    st.lists(st.sampled_from([*b'",;\t\r\n=@<s>\x00\xff\xef\xbb\xbf1a']), max_size=80).map(bytes),
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ANY, st.sampled_from([b"", b"query\n", b"query,count\n"]), st.booleans(), st.booleans(), st.booleans())
def test_any_bytes_give_a_list_or_an_error(tmp_path_factory, data, head, plenty, named, strict):
    path = tmp_path_factory.getbasetemp() / "any.csv"
    more = "\n".join(f"{query},1" for query in PLENTY).encode() if plenty else b""
    path.write_bytes(head + data + b"\n" + more)
    try:
        found = read_query_list(path, "query" if named else None, strict=strict)
    except MarketError as error:
        str(error).encode()  # can be printed whatever the file held
        return
    assert len(set(found.text)) == len(found.text) == found.count.size >= 50 and found.count.min() >= 1
    assert found.report.rows == found.report.kept + sum(found.report.refused.values())
    assert found.report.merged == found.report.kept - len(found.text)
    str(found.report).encode()


@settings(max_examples=300, deadline=None)
@given(ANY.map(lambda data: data.replace(b"\r", b"").replace(b"\n", b"")), st.sampled_from(["query", "query,count"]))
def test_any_bytes_in_one_row_cost_that_row_only(tmp_path_factory, data, head):
    rows = [(f"{query},1" if "," in head else query).encode() for query in PLENTY]
    path = tmp_path_factory.getbasetemp() / "row.csv"
    path.write_bytes(b"\n".join([head.encode(), *rows[:30], data, *rows[30:]]))
    found = read_query_list(path)
    assert set(PLENTY) <= set(found.text) and found.report.rows == 61


# ---------------------------------------------------------------- tastes
TOPICS = {
    "kitchen": ("pan pot kettle whisk bowl", "steel cast iron copper small large"),
    "garden": ("hose rake shovel mower seeds", "green long wooden electric heavy"),
    "music": ("guitar violin trumpet drum cello", "acoustic vintage beginner jazz brass"),
}
CHINESE = {"手机": "壳 膜 充电器 支架 电池 数据线 套 卡", "连衣裙": "红色 长款 夏季 大码 碎花 雪纺 短袖 修身"}


def topics() -> tuple[list[str], np.ndarray]:
    texts, topic = [], []
    for number, (things, looks) in enumerate(TOPICS.values()):
        pairs = [f"{one} {two} {thing}" for thing in things.split() for one in looks.split() for two in looks.split()]
        texts += pairs
        topic += [number] * len(pairs)
    return texts, np.array(topic)


def check_tastes(tastes, n: int, departments: int) -> None:
    assert tastes.department.shape == tastes.family.shape == (n,)
    assert tastes.department.dtype == tastes.family.dtype == np.int32
    assert np.unique(tastes.department).tolist() == list(range(departments)), "no department is empty"
    assert np.unique(tastes.family).tolist() == list(range(tastes.family.max() + 1)), "no family is empty"
    assert len(set(zip(tastes.family.tolist(), tastes.department.tolist(), strict=True))) == tastes.family.max() + 1
    assert len(tastes.department_names) == len(set(tastes.department_names)) == departments
    assert all(name.strip() for name in tastes.department_names)


def test_planted_departments_and_families_are_found():
    texts, topic = topics()
    tastes = induce_tastes(texts, np.ones(len(texts)), 3, 20, seed=0)
    check_tastes(tastes, len(texts), 3)
    pairs = set(zip(topic.tolist(), tastes.department.tolist(), strict=True))
    assert len(pairs) == 3, "every topic is one department"
    for number, department in pairs:
        own = set(" ".join(list(TOPICS.values())[number]).split())
        words = tastes.department_names[department].split()
        assert 2 <= len(words) <= 3 and set(words) <= own
    assert 10 <= len(texts) / (tastes.family.max() + 1) <= 40

    def shared(label: np.ndarray) -> float:
        """Words that neighbours share, on average, when the queries are sorted by a label."""
        order = np.random.default_rng(0).permutation(len(texts))
        order = order[np.argsort(label[order], kind="stable")]
        pairs = [(a, b) for a, b in zip(order, order[1:], strict=False) if label[a] == label[b]]
        return float(np.mean([len(set(texts[a].split()) & set(texts[b].split())) for a, b in pairs]))

    assert shared(tastes.family) > 1.5 * shared(tastes.department), "by chance the two are equal"


def test_departments_of_a_chinese_list(tmp_path):
    rows = [f"{thing}{one}{two}" for thing, looks in CHINESE.items() for one in looks.split() for two in looks.split()]
    found = read_query_list(write(tmp_path / "list.csv", rows), strict=True)
    assert sorted(found.text) == sorted(rows)
    tastes = induce_tastes(found.text, found.count, 2, 8, seed=0)
    check_tastes(tastes, len(rows), 2)
    phone = np.array([text.startswith("手机") for text in found.text])
    assert len(set(zip(phone.tolist(), tastes.department.tolist(), strict=True))) == 2


def test_counts_weigh_and_name():
    texts, _ = topics()
    counts = np.ones(len(texts))
    counts[[text.split()[0] == "brass" for text in texts]] = 1e6
    tastes = induce_tastes(texts, counts, 1, 20, seed=0)
    assert tastes.department_names[0].split()[0] == "brass"


def test_names_hold_own_words_and_all_differ():
    assert _name_departments(["red shoes", "tea"], np.ones(2), np.array([0, 1])) == ["red shoes", "tea"]
    assert _name_departments(["a b", "b a"], np.ones(2), np.array([0, 1])) == ["a b", "a b (1)"]


def test_few_queries_make_few_departments():
    check_tastes(induce_tastes(PLENTY, np.ones(60), 12, 20, seed=0), 60, 3)
    check_tastes(induce_tastes(["a"], [1], 5, 2, seed=0), 1, 1)
    same = ["a b c", "b c a", "c a b", "a c b"]  # the same n-grams: nothing to tell them apart by
    check_tastes(induce_tastes(same, [1] * 4, 2, 2, seed=0), 4, 1)
    twins = [" ".join(order) for word in ("abc", "xyz") for order in permutations(word)]  # 2 points, 6 families wanted
    assert induce_tastes(twins, [1] * 12, 1, 2, seed=0).family.max() == 1
    check_tastes(induce_tastes(twins, [1] * 12, 1, 2, seed=0), 12, 1)
    check_tastes(induce_tastes(["\U0001f45f", "\U0001f460", "!", "?"], [1] * 4, 1, 2, seed=2**63 - 1), 4, 1)


@pytest.mark.parametrize(
    ("texts", "counts", "departments", "size", "seed"),
    [
        ([], [], 1, 2, 0),
        (["a", " "], [1, 1], 1, 2, 0),
        (["a"], [1, 1], 1, 2, 0),
        (["a"], [0], 1, 2, 0),
        (["a"], [np.nan], 1, 2, 0),
        (["a"], [1], 0, 2, 0),
        (["a"], [1], 1, 1, 0),
        (["a"], [1], 1, 2, -1),
    ],
)
def test_wrong_arguments_of_tastes_are_errors(texts, counts, departments, size, seed):
    with pytest.raises(MarketError, match="expected"):
        induce_tastes(texts, counts, departments, size, seed)


DRAW = """
import hashlib, random
from data_synth.query_tastes import induce_tastes
rng = random.Random(0)
texts = sorted({"".join(rng.choices("abcdefghij ", k=rng.randrange(4, 20))).strip() or "x" for _ in range(3000)})
for seed in (0, 0, 1):
    tastes = induce_tastes(texts, range(1, len(texts) + 1), 9, 12, seed)
    told = tastes.department.tobytes() + tastes.family.tobytes() + repr(tastes.department_names).encode()
    print(hashlib.md5(told).hexdigest())
"""


def test_tastes_depend_on_the_seed_alone():
    found = []
    for threads, hash_seed in (("1", "1"), ("2", "2")):
        variables = {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", DRAW],
            cwd=ROOT,
            env=os.environ | variables,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        found.append(done.stdout.split())
    assert found[0] == found[1], "the number of threads or the hash seed changes the answer"
    first, again, other = found[0]
    assert first == again != other


def test_one_thread_works_out_the_tastes(monkeypatch):
    """Sums over threads differ in their last bits, and with them, now and then, a label."""
    threads, svd = [], extmath.randomized_svd

    def watched(*args, **kwargs):
        threads.extend(pool["num_threads"] for pool in threadpool_info())
        return svd(*args, **kwargs)

    monkeypatch.setattr(extmath, "randomized_svd", watched)
    with threadpool_limits(2):
        induce_tastes(PLENTY, np.ones(60), 2, 20, seed=0)
    assert set(threads) == {1}
