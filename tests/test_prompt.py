"""Prompts: what a shopper typed comes back unchanged and never turns into a control token."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onesug_lite.prompt import PromptConfig, build_prompts, encode_queries
from onesug_lite.tokenizer import CONTROL_TOKENS, PromptError, clean, decode_queries, train_tokenizer

CONFIG = PromptConfig(vocab_size=400)
WRITTEN_OUT = replace(CONFIG, pooled=False)
TEXTS = [
    "red running shoes",
    "running shoes men",
    "apple phone case",
    "red apple",
    "苹果手机壳",
    "苹果手机",
] * 5
ANY_TEXT = st.text(st.characters(), max_size=40)  # includes lone surrogates, controls and unassigned code points
CONTROL_TEXT = st.lists(st.sampled_from([*CONTROL_TOKENS, "<mask>", " ", "a", "<", ">", "s"]), max_size=8).map("".join)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, CONFIG)


def segments(tokenizer, prompt):
    """The prompt's text, segment by segment and item by item, from either kind of prompt."""
    pooled = not isinstance(prompt[0], int)
    positions = prompt if pooled else [[token] for token in prompt]
    assert positions[0] == [tokenizer.cls_token_id]
    item = tokenizer.convert_tokens_to_ids("<item>")
    parts = [[[]]]
    for position in positions[1:]:
        if position == [tokenizer.sep_token_id]:
            parts.append([[]])
        elif position == [item]:
            parts[-1].append([])
        elif pooled and len(parts) > 1 and parts[-1][-1]:
            parts[-1].append(position)
        else:
            parts[-1][-1] += position
    return [decode_queries(tokenizer, part) for part in parts]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Red\t SHOES \n", "red shoes"),
        ("ＦＵＬＬ　ｗｉｄｔｈ", "full width"),
        ("a\u200bb\ufeff\x00c", "abc"),
        ("e\u0301te\u0301", "\u00e9t\u00e9"),
        ("Straße", "straße"),
        ("👨\u200d👩\u200d👧", "👨👩👧"),
        ("苹果 手机", "苹果 手机"),
        ("\ud800x", "x"),
        ("", ""),
        (None, ""),
    ],
)
def test_clean_examples(text, expected):
    assert clean(text) == expected


@settings(deadline=None, max_examples=400)
@given(ANY_TEXT)
def test_clean_never_raises_and_settles(text):
    once = clean(text)
    assert clean(once) == once
    assert once == once.strip() and "  " not in once
    once.encode()  # no lone surrogates are left


@settings(deadline=None, max_examples=300)
@given(st.one_of(ANY_TEXT, CONTROL_TEXT, st.text("<>/spaditemunk", max_size=20)))
def test_any_query_comes_back(tokenizer, text):
    config = PromptConfig(query_tokens=400)
    if not clean(text):
        with pytest.raises(PromptError, match="row 0"):
            encode_queries(tokenizer, [text], config)
        return
    (ids,) = encode_queries(tokenizer, [text], config)
    assert decode_queries(tokenizer, [ids]) == [clean(text)]
    assert ids[-1] == tokenizer.eos_token_id
    assert not set(ids[:-1]) & set(tokenizer.all_special_ids)


@settings(deadline=None, max_examples=300)
@given(CONTROL_TEXT, st.lists(CONTROL_TEXT, max_size=3), st.lists(CONTROL_TEXT, max_size=3), st.booleans())
def test_control_tokens_cannot_be_typed(tokenizer, prefix, related, history, pooled):
    config = PromptConfig(prefix_tokens=200, item_tokens=200, profile_tokens=200, pooled=pooled)
    if not clean(prefix):
        return
    (prompt,) = build_prompts(tokenizer, [prefix], [related], [history], [history], config)
    found = segments(tokenizer, prompt)
    kept = [clean(text) for text in history if clean(text)]
    assert found[0] == [clean(prefix[: config.max_prefix_chars])]
    assert found[1] == ([clean(text) for text in related if clean(text)] or [""])
    assert found[2] == (kept[::-1] or [""])
    assert found[3] == (kept or [""])
    assert len(found) == 4


@pytest.mark.parametrize("config", [CONFIG, WRITTEN_OUT])
def test_segments_keep_their_places(tokenizer, config):
    prompts = build_prompts(
        tokenizer, ["red", "ap", "苹"], [["red apple"], None, []], [["old", "new"], None, []], None, config
    )
    assert [segments(tokenizer, prompt) for prompt in prompts] == [
        [["red"], ["red apple"], ["new", "old"], [""]],
        [["ap"], [""], [""], [""]],
        [["苹"], [""], [""], [""]],
    ]
    assert build_prompts(tokenizer, ["ap"], None, None, None, config) == prompts[1:2]


def test_only_the_latest_searches_and_the_best_related_are_read(tokenizer):
    config = PromptConfig(related=2, history=2)
    (prompt,) = build_prompts(tokenizer, ["red"], [list("abc")], [list("xyz")], None, config)
    assert segments(tokenizer, prompt)[1:3] == [["a", "b"], ["z", "y"]]
    (prompt,) = build_prompts(tokenizer, ["red"], [list("abc")], [list("xyz")], None, PromptConfig(history=0))
    assert segments(tokenizer, prompt)[2] == [""]


@pytest.mark.parametrize("config", [CONFIG, WRITTEN_OUT, replace(CONFIG, ids=True), replace(WRITTEN_OUT, ids=True)])
@pytest.mark.parametrize("prefix", ["x" * 10_000, "😀" * 10_000, "苹果" * 5_000, " a" * 5_000])
def test_long_text_is_cut(tokenizer, prefix, config):
    (prompt,) = build_prompts(tokenizer, [prefix], [[prefix] * 9], [[prefix] * 9], [[prefix] * 9], config, [10**12])
    assert len(prompt) <= config.longest
    separator = tokenizer.sep_token_id
    assert prompt.count([separator] if config.pooled else separator) == 3 + config.ids
    (target,) = encode_queries(tokenizer, [prefix], CONFIG)
    assert len(target) == CONFIG.query_tokens and target[-1] == tokenizer.eos_token_id


def test_an_item_is_one_position(tokenizer):
    arguments = (tokenizer, ["red"], [["red apple"]], [["apple phone case", "red"]], [["red", "phone case"]])
    (pooled,), (written,) = (build_prompts(*arguments, config) for config in (CONFIG, WRITTEN_OUT))
    assert len(pooled) == 2 + 2 + 3 + 3 and max(map(len, pooled)) == 3
    control = tokenizer.convert_tokens_to_ids("<item>")
    assert [token for position in pooled for token in position] == [token for token in written if token != control]


@pytest.mark.parametrize("config", [CONFIG, WRITTEN_OUT])
def test_raw_ids_are_a_fifth_segment_of_digits(tokenizer, config):
    arguments = (["red", "red", "ap"], None, None, None)
    with_ids = build_prompts(tokenizer, *arguments, replace(config, ids=True), [12, None, 12])
    found = [segments(tokenizer, prompt)[4] for prompt in with_ids]
    digits = ["".join(row).replace(" ", "") for row in found]
    assert digits[0].startswith("0000012") and digits[0].endswith(digits[1]) and digits[0] != digits[2]
    plain = build_prompts(tokenizer, *arguments, config, [12, None, 12])
    assert plain == build_prompts(tokenizer, *arguments, config)
    assert all(long[: len(short)] == short for long, short in zip(with_ids, plain, strict=True))


def test_items_that_begin_as_typed_are_marked(tokenizer):
    match = tokenizer.convert_tokens_to_ids("<match>")
    asked = (["  App"], [["red apple", "grapple"]], [["apple phone case", "red shoes"]], [["apple"]])

    def marks(config):
        (prompt,) = build_prompts(tokenizer, *asked, config)
        return [prompt.index(position) for position in prompt if match in position]

    (plain,) = build_prompts(tokenizer, *asked, replace(CONFIG, marks=False))
    red_apple, phone_case = tokenizer(["red apple", "apple phone case"], add_special_tokens=False)["input_ids"]
    # a word inside an item counts; letters inside a word, and profile attributes, do not
    assert marks(CONFIG) == [plain.index(red_apple), plain.index(phone_case[: CONFIG.item_tokens])]
    assert not marks(replace(CONFIG, marks=False))
    (line,) = build_prompts(tokenizer, *asked, WRITTEN_OUT)
    assert line.count(match) == 2 and len(line) <= WRITTEN_OUT.longest
    assert line[line.index(match) + 1] == red_apple[0]


def test_no_profile_tokens_no_profile(tokenizer):
    (prompt,) = build_prompts(tokenizer, ["red"], None, None, [["red", "apple"]], replace(CONFIG, profile_tokens=0))
    assert segments(tokenizer, prompt)[3] == [""]
    (prompt,) = build_prompts(tokenizer, ["red"], None, None, [["red", "red apple"]], replace(CONFIG, profile_tokens=2))
    assert segments(tokenizer, prompt)[3] == ["red", "red"]


@pytest.mark.parametrize("prefix", ["", "   ", "\u200b\u200d", "\x00\x1b", None, "\ud800"])
def test_blank_prefix_names_the_row(tokenizer, prefix):
    with pytest.raises(PromptError, match="prefix of row 1 is"):
        build_prompts(tokenizer, ["ok", prefix], None, None, None, CONFIG)


def test_columns_of_different_length(tokenizer):
    with pytest.raises(PromptError, match="histories has 1 rows and prefixes has 2"):
        build_prompts(tokenizer, ["a", "b"], None, [["x"]], None, CONFIG)


def test_vocabulary_too_small():
    with pytest.raises(PromptError, match="vocab_size is 100"):
        train_tokenizer(TEXTS, PromptConfig(vocab_size=100))


def test_words_are_one_token_wherever_they_stand(tokenizer):
    first, second = encode_queries(tokenizer, ["shoes", "red shoes"], CONFIG)
    assert first == second[1:] and len(first) == 2


def whole_words(texts):
    """The tokeniser without its care for Chinese: byte-level BPE over what stands between blanks."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    sizes = {"vocab_size": CONFIG.vocab_size, "min_frequency": CONFIG.min_frequency}
    trainer = trainers.BpeTrainer(
        **sizes, special_tokens=list(CONTROL_TOKENS), initial_alphabet=alphabet, show_progress=False
    )
    plain.train_from_iterator(map(clean, texts), trainer)
    plain.encode_special_tokens = True  # a typed control token is text
    return plain


def without_chinese(text):
    return not re.search(r"[\u2e80-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]", text)


ENGLISH = [text for text in TEXTS if without_chinese(text)]
PLAIN, ENGLISH_ONLY = whole_words(ENGLISH), train_tokenizer(ENGLISH, CONFIG)


@settings(deadline=None, max_examples=300)
@given(st.one_of(ANY_TEXT, st.text("aples rd'4 ", max_size=20)).map(clean).filter(without_chinese))
def test_texts_without_chinese_have_the_tokens_of_plain_bpe(text):
    assert ENGLISH_ONLY.get_vocab() == PLAIN.get_vocab()
    assert (
        ENGLISH_ONLY(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] == PLAIN.encode(text).ids
    )


@pytest.mark.parametrize("text", ["苹果手机壳", "苹果 iphone 手机", "手机壳4k苹果", "𠮷野家"])
def test_a_longer_chinese_prefix_continues_the_tokens_of_a_shorter_one(tokenizer, text):
    ids = [encode_queries(tokenizer, [text[:length]], CONFIG)[0][:-1] for length in (2, len(text))]
    assert ids[1][: len(ids[0])] == ids[0]
    assert whole_words(TEXTS).encode("苹果手").ids != whole_words(TEXTS).encode("苹果手机").ids[:-1]  # as it would be


def test_chinese_queries_come_back_and_fit(chinese):
    config = chinese.sizes.prompt
    ids = encode_queries(chinese.tokenizer, chinese.queries, replace(config, query_tokens=99))
    assert decode_queries(chinese.tokenizer, ids) == chinese.queries
    assert sum(len(row) <= config.query_tokens for row in ids) >= 0.99 * len(ids)
    assert sum(len(row) - 1 <= len(query) for row, query in zip(ids, chinese.queries, strict=True)) >= 0.9 * len(ids)


def test_a_chinese_log_is_typed_both_ways(chinese):
    prefixes = chinese.training_clicks["prefix"].unique().sort().to_list()
    ids = encode_queries(chinese.tokenizer, prefixes, replace(chinese.sizes.prompt, query_tokens=99))
    assert decode_queries(chinese.tokenizer, ids) == prefixes
    assert 0.2 < sum(map(without_chinese, prefixes)) / len(prefixes) < 0.8
    assert not any(map(without_chinese, chinese.queries))


def test_saved_tokenizer_is_the_same(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    texts = ["<sep> apple", "苹果 😀", "</s>", "<item>"]
    assert encode_queries(loaded, texts, CONFIG) == encode_queries(tokenizer, texts, CONFIG)
    arguments = (["<pad>x"], [["a", "<item>"]], [["b"]], None, CONFIG)
    assert build_prompts(loaded, *arguments) == build_prompts(tokenizer, *arguments)


def test_foreign_tokenizer_without_our_tokens():
    """A tokeniser with only an end of sequence, whose plain vocabulary holds that token as well."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["</s>", "<unk>", "red", "shoes", ";", "apple", "<", "/", "s", ">"]
    backend = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    foreign = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")
    prompts = build_prompts(foreign, ["red </s>"], [["shoes", "apple"]], None, None, WRITTEN_OUT)
    assert prompts == [[2, 0, 3, 4, 5, 0, 0]]
    assert encode_queries(foreign, ["red </s> shoes"], CONFIG) == [[2, 3, 0]]


def test_vocabulary_does_not_depend_on_the_hash_seed(tokenizer):
    program = (
        "import json; from tests.test_prompt import *; "
        "print(json.dumps(sorted(train_tokenizer(TEXTS, CONFIG).get_vocab().items())))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": os.pathsep.join([".", *sys.path])}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert json.loads(done.stdout) == [list(pair) for pair in sorted(tokenizer.get_vocab().items())]
