"""Beam search: the queries and scores of transformers' generate, for every shape a request can have."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from onesug_lite.batches import collate_prompts, pad
from onesug_lite.decode import (
    BeamSearcher,
    DecodeConfig,
    beam_search,
    merge_queries,
    reference_search,
    suggest_queries,
)
from onesug_lite.generator import GeneratorConfig, build_generator, query_logits
from onesug_lite.losses import sequence_log_probs
from onesug_lite.packed import PackedBart
from onesug_lite.prompt import PromptConfig, build_prompts, encode_queries
from onesug_lite.tokenizer import train_tokenizer
from onesug_lite.training import Examples, TrainConfig, train_supervised
from onesug_lite.trie import Trie

WORDS = ["red", "blue", "shoes", "phone", "case", "running", "men", "kids", "苹果", "手机"]
QUERIES = [f"{first} {second}" for first in WORDS for second in WORDS if first != second]
QUERIES += [f"{query} {WORDS[place % 10]}" for place, query in enumerate(QUERIES)]
PROMPT = PromptConfig(vocab_size=330, pooled=False)
CONFIG = DecodeConfig()
VOCABULARY = 307  # of the models with random weights


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(QUERIES, PROMPT)


@pytest.fixture(scope="module")
def prompts(tokenizer):
    rng = np.random.default_rng(0)
    prefixes = [query[: rng.integers(1, 5)] for query in QUERIES]
    histories = [list(rng.choice(QUERIES, rng.integers(0, 4))) for _ in QUERIES]
    return build_prompts(tokenizer, prefixes, None, histories, None, PROMPT)


@pytest.fixture(scope="module")
def trained(tokenizer, prompts, tmp_path_factory):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = build_generator(GeneratorConfig(d_model=32, heads=2, ffn=64), tokenizer, 0)
    examples = Examples(prompts, encode_queries(tokenizer, QUERIES, PROMPT))
    config = TrainConfig(steps=200, batch_size=32, learning_rate=3e-3, warmup=10, bf16=False)
    yield train_supervised(model, examples, config, 0, tmp_path_factory.mktemp("train") / "work").model
    torch.set_num_threads(threads)


def random_model(tokenizer, seed, vocabulary=VOCABULARY, end_bias=0.0, **shape):
    """Wide random weights in double precision, so that rounding changes no order of scores.

    The vocabulary's size does not hang on what the tokeniser found to merge: with some sizes a model that only repeats
    itself has two queries of one score, and either may come first.
    """
    model = build_generator(GeneratorConfig(d_model=16, heads=2, ffn=32, **shape), tokenizer, seed)
    if vocabulary != len(tokenizer):
        model.resize_token_embeddings(vocabulary)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for name, values in model.named_parameters():
            values.normal_(1.0 if "norm.weight" in name else 0.0, 0.4)
        if shape.get("architecture") != "decoder-only":  # that kind has no bias
            model.final_logits_bias.normal_(0.0, 0.5)
            model.final_logits_bias[0, 2] += end_bias
    return model.double()


def batch(lengths, vocabulary, seed=0):
    rng = np.random.default_rng(seed)
    input_ids = pad([[0, *rng.integers(6, vocabulary, length - 1)] for length in lengths], 1)
    return input_ids, (torch.arange(input_ids.shape[1]) < torch.tensor(lengths)[:, None]).long()


def assert_equal(found, expected, tolerance):
    assert found.tokens.shape == expected.tokens.shape
    assert torch.equal(found.tokens, expected.tokens)
    assert torch.allclose(found.scores, expected.scores.to(found.scores.dtype), rtol=0, atol=tolerance)


@pytest.mark.parametrize("end_bias", [-2.0, 2.0, 5.0, 9.0])  # from nothing ends to everything ends at once
@pytest.mark.parametrize("seed", [0, 1])
def test_equal_to_generate_on_random_models(tokenizer, seed, end_bias):
    model = random_model(tokenizer, seed, end_bias=end_bias)
    inputs = batch([12, 1, 40, 7, 25], VOCABULARY, seed)
    assert_equal(beam_search(model, *inputs, CONFIG), reference_search(model, *inputs, CONFIG), 1e-5)


@pytest.mark.parametrize(
    "config",
    [
        DecodeConfig(1, 1, 5),
        DecodeConfig(3, 3, 2),
        DecodeConfig(8, 2, 1),
        DecodeConfig(32, 32, 6),
        DecodeConfig(5, 1, 30),
    ],
)
def test_equal_to_generate_at_other_widths(tokenizer, config):
    model = random_model(tokenizer, 3, end_bias=3.0)
    inputs = batch([4, 9], VOCABULARY)
    assert_equal(beam_search(model, *inputs, config), reference_search(model, *inputs, config), 1e-5)


def test_equal_to_generate_with_a_vocabulary_hardly_larger_than_the_beams(tokenizer):
    model = random_model(tokenizer, 4, vocabulary=34, end_bias=1.0)
    inputs = batch([6, 3], 34)
    assert_equal(beam_search(model, *inputs, CONFIG), reference_search(model, *inputs, CONFIG), 1e-5)


def test_equal_to_generate_with_scaled_embeddings_and_deep_layers(tokenizer):
    from transformers import BartConfig, BartForConditionalGeneration

    torch.manual_seed(0)
    shape = BartConfig(
        vocab_size=300, d_model=24, encoder_layers=3, decoder_layers=1, encoder_attention_heads=3,
        decoder_attention_heads=2, encoder_ffn_dim=20, decoder_ffn_dim=30, max_position_embeddings=50,
        scale_embedding=True, activation_function="relu", init_std=0.3,
    )  # fmt: skip
    model = BartForConditionalGeneration(shape).eval().double()
    model.generation_config.forced_eos_token_id = 2  # habits of the checkpoint that a search must not follow
    model.generation_config.no_repeat_ngram_size = 2
    model.generation_config.early_stopping = True
    inputs = batch([5, 20], 300)
    assert_equal(beam_search(model, *inputs, CONFIG), reference_search(model, *inputs, CONFIG), 1e-5)
    assert model.generation_config.forced_eos_token_id == 2


def test_equal_to_generate_on_a_trained_model(trained, prompts):
    for first in range(0, 40, 8):
        rows = prompts[first : first + 8]
        input_ids = pad(rows, 1)
        mask = (torch.arange(input_ids.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]).long()
        found = beam_search(trained, input_ids, mask, CONFIG)
        assert_equal(found, reference_search(trained, input_ids, mask, CONFIG), 1e-4)
    assert (found.tokens == 2).any(dim=2).all(), "a trained model ends its queries"


def test_batch_and_single_requests_agree(tokenizer):
    model = random_model(tokenizer, 5, end_bias=4.0)
    input_ids, mask = batch([30, 2, 17, 5, 11, 23], VOCABULARY)
    together = beam_search(model, input_ids, mask, CONFIG)
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        alone = beam_search(model, input_ids[row : row + 1, :length], mask[row : row + 1, :length], CONFIG)
        width = alone.tokens.shape[2]
        assert torch.equal(together.tokens[row, :, :width], alone.tokens[0])
        assert (together.tokens[row, :, width:] == 1).all()
        assert torch.allclose(together.scores[row], alone.scores[0], rtol=0, atol=5e-5)


def test_scores_are_the_log_probabilities_of_the_tokens(trained, prompts):
    prompt = torch.tensor([prompts[0]])
    found = beam_search(trained, prompt, torch.ones_like(prompt), CONFIG)
    for tokens, score in zip(found.tokens[0], found.scores[0], strict=True):
        tokens = tokens[tokens != 1][None]
        with torch.inference_mode():
            logits = trained(input_ids=prompt, labels=tokens).logits
        expected = logits.log_softmax(dim=-1).gather(2, tokens[:, :, None]).sum()
        assert float(score) == pytest.approx(float(expected), abs=1e-3)
    assert (found.scores[0].diff() <= 0).all()


def test_wide_search_is_exhaustive_on_two_tokens(tokenizer):
    """With as many beams as continuations, the search is the full enumeration."""
    model = random_model(tokenizer, 6, vocabulary=9, end_bias=1.0)
    prompt = torch.tensor([[0, 7, 8]])
    found = beam_search(model, prompt, torch.ones_like(prompt), DecodeConfig(8, 8, 2))
    start = torch.tensor([[2]])
    with torch.inference_mode():
        first = model(input_ids=prompt, decoder_input_ids=start).logits[0, -1].float().log_softmax(-1)
        scores = {(2,): float(first[2])}
        for token in set(range(9)) - {2}:
            given = torch.tensor([[2, token]])
            second = model(input_ids=prompt, decoder_input_ids=given).logits[0, -1].float().log_softmax(-1)
            scores |= {(token, last): float(first[token] + second[last]) for last in range(9)}
    best = sorted(scores, key=scores.get, reverse=True)[:8]
    got = [tuple(row[: 1 if row[0] == 2 else 2].tolist()) for row in found.tokens[0]]
    assert got == best


def test_suggestions(trained, tokenizer, prompts):
    one_by_one = [suggest_queries(trained, tokenizer, [prompt], CONFIG)[0] for prompt in prompts[:10]]
    searcher = BeamSearcher(trained, CONFIG)
    batched = suggest_queries(searcher, tokenizer, prompts[:10], CONFIG, batch_size=4)
    for alone, together in zip(one_by_one, batched, strict=True):
        assert [query for query, _ in alone] == [query for query, _ in together]
        assert [score for _, score in alone] == pytest.approx([score for _, score in together], abs=1e-4)
        scores = [score for _, score in together]
        assert scores == sorted(scores, reverse=True) and len(together) <= 16
        assert len({query for query, _ in together}) == len(together)
        assert all(query and "\ufffd" not in query for query, _ in together)
    known = sum(query in set(QUERIES) for row in batched for query, _ in row[:3])
    assert known >= 20, "most of the first three suggestions of a trained model are queries"
    assert suggest_queries(searcher, tokenizer, [], CONFIG) == []


def test_equal_texts_add_up_and_unusable_ones_go():
    merged = merge_queries(
        ["b", "a", "b", "", "c\ufffd", "d"], [-1.0, -0.9, -1.0, -0.1, -0.1, -0.1], [True] * 5 + [False]
    )
    assert [query for query, _ in merged] == ["b", "a"]
    assert merged[0][1] == pytest.approx(np.log(2 * np.exp(-1.0)))
    assert merge_queries(["z", "a"], [-1.0, -1.0], [True, True]) == [("a", -1.0), ("z", -1.0)]


def test_other_architectures_go_through_generate(tokenizer, prompts):
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    shape = T5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, pad_token_id=1,
        eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    model = T5ForConditionalGeneration(shape).eval()
    with pytest.raises(ValueError, match="use reference_search"):
        beam_search(model, torch.tensor([[0, 7]]), torch.tensor([[1, 1]]), CONFIG)
    assert len(suggest_queries(model, tokenizer, prompts[:2], DecodeConfig(8, 4, 4))) == 2


def test_settings_that_cannot_work(trained, tokenizer):
    with pytest.raises(ValueError, match="1 <= results <= beams"):
        DecodeConfig(beams=8, results=9)
    with pytest.raises(ValueError, match="max_new_tokens is 0"):
        DecodeConfig(max_new_tokens=0)
    with pytest.raises(ValueError, match="max_new_tokens is 999"):
        BeamSearcher(trained, DecodeConfig(max_new_tokens=999))
    with pytest.raises(ValueError, match="400 beams need more"):
        BeamSearcher(trained, DecodeConfig(beams=400))
    with pytest.raises(ValueError, match="shorten the prompts"):
        beam_search(trained, *batch([200], len(tokenizer)), CONFIG)
    with pytest.raises(ValueError, match="the searcher was made with"):
        suggest_queries(BeamSearcher(trained, CONFIG), tokenizer, [[0]], DecodeConfig(beams=20))


def test_lost_beams_and_done_requests_are_left_out(tokenizer, monkeypatch):
    """The search is fast as it stops computing what cannot matter; count the rows that the decoder sees."""
    rows = []
    original = PackedBart.decode

    def counted(self, last, *arguments):
        rows.append(len(last))
        return original(self, last, *arguments)

    monkeypatch.setattr(PackedBart, "decode", counted)
    inputs = batch([30, 2, 17, 5, 11, 23, 9, 9], VOCABULARY)
    beam_search(random_model(tokenizer, 5, end_bias=2.0), *inputs, CONFIG)
    assert rows[:3] == [8, 256, 256] and rows[-1] <= 128, "done requests are still computed"
    rows.clear()
    beam_search(random_model(tokenizer, 5, end_bias=4.0), *inputs, CONFIG)
    assert rows[:2] == [8, 256] and len(rows) < 5 and rows[-1] < 32, "lost beams are still computed"


# ---------------------------------------------------------------- several tokens a position, decoder-only, a trie
def pooled_batch(lengths, vocabulary, seed=0):
    rng = np.random.default_rng(seed)
    prompts = [
        [[0], *(rng.integers(6, vocabulary, rng.integers(1, 5)).tolist() for _ in range(n - 1))] for n in lengths
    ]
    return collate_prompts(prompts, 1)


MODELS = {"encoder-decoder": {"end_bias": 2.0}, "decoder-only": {"architecture": "decoder-only"}}


@pytest.mark.parametrize("make", [batch, pooled_batch])
@pytest.mark.parametrize("kind", MODELS)
def test_every_kind_of_model_and_prompt_equals_generate(tokenizer, kind, make):
    model = random_model(tokenizer, 2, **MODELS[kind])
    inputs = make([12, 2, 17, 7], VOCABULARY, 1)
    found = beam_search(model, *inputs, CONFIG)
    assert_equal(found, reference_search(model, *inputs, CONFIG), 5e-5)
    alone = beam_search(model, *(part[1:2] for part in inputs), CONFIG)  # padded all the same
    short = beam_search(model, *(part[1:2, :2] for part in inputs), CONFIG)
    for one in (alone, short):
        width = min(one.tokens.shape[2], found.tokens.shape[2])
        assert torch.equal(found.tokens[1, :, :width], one.tokens[0, :, :width])
        # Qwen's norms compute in single precision whatever the weights are.
        assert torch.allclose(found.scores[1], one.scores[0], rtol=0, atol=5e-5)


@pytest.fixture(scope="module")
def known():
    rng = np.random.default_rng(0)
    sequences = {(*rng.integers(6, 40, rng.integers(1, 5)).tolist(), 2) for _ in range(300)}
    return sorted(sequences)


@pytest.mark.parametrize("kind", MODELS)
def test_over_a_trie_equals_generate(tokenizer, known, kind):
    model = random_model(tokenizer, 3, **MODELS[kind])
    config, trie = DecodeConfig(known=True, max_new_tokens=6), Trie(known, VOCABULARY)
    inputs = pooled_batch([5, 9, 3], VOCABULARY)
    found = beam_search(model, *inputs, config, trie)
    assert_equal(found, reference_search(model, *inputs, config, trie), 1e-5)
    rows = [tuple(row[: row.index(2) + 1]) for row in found.tokens.flatten(0, 1).tolist()]
    assert set(rows) <= set(known)


def test_a_trie_of_fewer_queries_than_places(tokenizer, known):
    few = known[:5]
    model, trie = random_model(tokenizer, 3), Trie(few, VOCABULARY)
    found = beam_search(model, *batch([4, 8], VOCABULARY), DecodeConfig(known=True), trie)
    there = found.scores > -1e8
    assert there.sum(dim=1).tolist() == [5, 5]
    for tokens, row in zip(found.tokens, there, strict=True):
        assert {tuple(line[: line.index(2) + 1]) for line in tokens[row].tolist()} == set(few)


def test_probabilities_among_known_queries_add_up_to_one(tokenizer, known):
    few = known[:12]
    config = DecodeConfig(known=True, among_known=True)
    found = beam_search(random_model(tokenizer, 3), *batch([4], VOCABULARY), config, Trie(few, VOCABULARY))
    assert found.scores[found.scores > -1e8].exp().sum().item() == pytest.approx(1, abs=1e-5)
    with pytest.raises(ValueError, match="among_known is set without known"):
        DecodeConfig(among_known=True)


def test_scores_over_a_trie_are_those_of_the_query_among_all_texts(trained, tokenizer, prompts):
    held = sorted(set(map(tuple, encode_queries(tokenizer, QUERIES, PROMPT))))
    prompt = torch.tensor([prompts[0]])
    config, trie = DecodeConfig(known=True), Trie(held, len(tokenizer))
    found = beam_search(trained, prompt, torch.ones_like(prompt), config, trie)
    among = beam_search(trained, prompt, torch.ones_like(prompt), replace(config, among_known=True), trie)
    for beams, allowed in ((found, None), (among, trie.allowed)):
        labels = beams.tokens[0].masked_fill(beams.tokens[0] == 1, -100)  # (R, T)
        with torch.inference_mode():
            logits = query_logits(trained, prompt, torch.ones_like(prompt), labels)
        masks = None if allowed is None else allowed(labels, logits.shape[2])
        expected = sequence_log_probs(logits, labels, masks)
        assert torch.allclose(beams.scores[0], expected, rtol=0, atol=1e-3)
    assert (among.scores > found.scores).all()


def test_suggestions_over_a_trie_are_known_queries(trained, tokenizer, prompts):
    cleaned = sorted(set(QUERIES))
    trie = Trie(encode_queries(tokenizer, cleaned, PROMPT), len(tokenizer))
    config = DecodeConfig(known=True)
    free = suggest_queries(trained, tokenizer, prompts[:8], CONFIG)
    found = suggest_queries(trained, tokenizer, prompts[:8], config, trie=trie)
    prepared = suggest_queries(BeamSearcher(trained, config, trie), tokenizer, prompts[:8], config, batch_size=3)
    assert [[query for query, _ in row] for row in found] == [[query for query, _ in row] for row in prepared]
    assert all(len(row) == 16 and {query for query, _ in row} <= set(cleaned) for row in found)
    assert {query for row in free for query, _ in row} - set(cleaned), "free decoding writes others too"


def test_a_model_that_pads_with_its_end(tokenizer, known):
    """Checkpoints of the decoder-only kind often have one token for both."""
    model, config = random_model(tokenizer, 2, architecture="decoder-only"), DecodeConfig(known=True)
    inputs, trie = batch([6], VOCABULARY), Trie(known, VOCABULARY)
    expected = beam_search(model, *inputs, config, trie)
    model.config.pad_token_id = model.config.eos_token_id
    found = beam_search(model, *inputs, config, trie)
    assert torch.equal(found.tokens, expected.tokens.masked_fill(expected.tokens == 1, 2))
    assert (found.tokens[0, :, -1] == 2).all(), "the end of the longest query is cut off"
    model.config.eos_token_id = [2, 3]
    with pytest.raises(ValueError, match="eos_token_id of the model's config is"):
        beam_search(model, *inputs, config, trie)


@pytest.mark.parametrize("kind", MODELS)
def test_padding_beyond_the_last_position_is_cut_off(tokenizer, kind):
    model = random_model(tokenizer, 2, **MODELS[kind], max_positions=22)
    places = 22 if kind == "encoder-decoder" else 44 - CONFIG.max_new_tokens
    input_ids, mask = batch([places, 3], VOCABULARY)
    wider = [torch.nn.functional.pad(part, (0, 4), value=fill) for part, fill in ((input_ids, 1), (mask, 0))]
    found, expected = (beam_search(model, *inputs, CONFIG) for inputs in (wider, (input_ids, mask)))
    assert_equal(found, expected, 5e-5)
    with pytest.raises(ValueError, match=f"prompts of {places + 1} tokens and {places} positions"):
        beam_search(model, *batch([places + 1], VOCABULARY), CONFIG)


def test_a_trie_and_its_setting_go_together(tokenizer, known):
    model = random_model(tokenizer, 3)
    with pytest.raises(ValueError, match="known is True and there is no trie"):
        BeamSearcher(model, DecodeConfig(known=True))
    with pytest.raises(ValueError, match="known is False and there is a trie"):
        BeamSearcher(model, CONFIG, Trie(known, VOCABULARY))
    with pytest.raises(ValueError, match="known queries end in token 7 and the model's end is 2"):
        BeamSearcher(model, DecodeConfig(known=True), Trie([[8, 7]], VOCABULARY))
