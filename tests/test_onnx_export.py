"""The exported graphs against torch, and the search over them against transformers' generate."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from onesug_lite.batches import collate_prompts
from onesug_lite.decode import BeamSearcher, DecodeConfig, reference_search
from onesug_lite.fast_decode import FastSearcher
from onesug_lite.generator import GeneratorConfig, build_generator, prompt_vectors, query_logits
from onesug_lite.onnx_export import OnnxError, OnnxGenerator, export_onnx
from onesug_lite.prompt import PromptConfig
from onesug_lite.tokenizer import train_tokenizer
from onesug_lite.trie import Trie

WORDS = ["red", "blue", "shoes", "phone", "case", "running", "men", "kids"]
PROMPT = PromptConfig(vocab_size=330)
VOCABULARY = 307
DEEP = GeneratorConfig(d_model=24, heads=3, ffn=40, encoder_layers=2, decoder_layers=2, max_positions=40)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([f"{first} {second}" for first in WORDS for second in WORDS], PROMPT)


@pytest.fixture(scope="module")
def model(tokenizer):
    """Random weights, wide enough for scores to differ, that end now and then."""
    made = build_generator(DEEP, tokenizer, 0)
    made.resize_token_embeddings(VOCABULARY)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        for name, values in made.named_parameters():
            values.normal_(1.0 if "norm.weight" in name else 0.0, 0.3)
        made.final_logits_bias.normal_(0.0, 0.5)
        made.final_logits_bias[0, 2] += 6.0
    return made.eval()


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    return export_onnx(model, tmp_path_factory.mktemp("onnx") / "graphs")


@pytest.fixture(scope="module")
def graphs(exported):
    return OnnxGenerator(exported)


def random_prompts(number, rng, widest=4):
    """Prompts of 1 to 20 positions with 1 to ``widest`` tokens each."""
    return [
        [rng.integers(6, VOCABULARY, rng.integers(1, widest + 1)).tolist() for _ in range(rng.integers(1, 21))]
        for _ in range(number)
    ]


@pytest.mark.parametrize("seed", range(6))
def test_encoder_and_steps_equal_torch(model, graphs, seed):
    """Cross-attention's keys, and the log-probabilities of every token of random queries, over random batches."""
    rng = np.random.default_rng(seed)
    requests, beams, length = rng.integers(1, 4), rng.integers(1, 6), rng.integers(1, 9)
    ids, mask = collate_prompts(random_prompts(requests, rng, 1 if seed % 2 else 4), 1)
    labels = torch.from_numpy(rng.integers(6, VOCABULARY, (requests * beams, length)))
    with torch.inference_mode():
        states = model.get_encoder()(inputs_embeds=prompt_vectors(model, ids), attention_mask=mask).last_hidden_state
        expected = query_logits(model, ids, mask, labels).log_softmax(dim=-1).numpy()  # (R, T, V)
    cross = graphs.encode(ids.numpy(), mask.numpy())
    real = mask.bool().numpy()
    for layer, block in enumerate(model.model.decoder.layers):
        for side, project in enumerate((block.encoder_attn.k_proj, block.encoder_attn.v_proj)):
            with torch.inference_mode():
                wanted = project(states).numpy()
            got = cross[layer, side].transpose(0, 2, 1, 3).reshape(wanted.shape)
            np.testing.assert_allclose(got[real], wanted[real], rtol=0, atol=1e-4)

    past, tokens = graphs.empty(requests), np.full(requests * beams, model.config.decoder_start_token_id)
    rows = np.repeat(np.arange(requests), beams)
    for step in range(length):
        log_probs, past = graphs.step(tokens, rows, past, cross, mask.numpy())
        np.testing.assert_allclose(log_probs[:, :VOCABULARY], expected[:, step], rtol=0, atol=1e-4)
        assert (log_probs[:, VOCABULARY:] < -1e8).all(), "tokens that do not exist are possible"
        tokens, rows = labels[:, step].numpy(), np.arange(requests * beams)
    assert past.shape[4] == length


def test_rows_pick_the_past_that_a_query_continues(graphs):
    rng = np.random.default_rng(0)
    ids, mask = (part.numpy() for part in collate_prompts(random_prompts(1, rng), 1))
    cross, start = graphs.encode(ids, mask), np.array([2])
    _, past = graphs.step(start, np.zeros(1, np.int64), graphs.empty(1), cross, mask)
    _, past = graphs.step(np.array([10, 20]), np.zeros(2, np.int64), past, cross, mask)
    straight, kept = graphs.step(np.array([30, 30]), np.array([0, 1]), past, cross, mask)
    crossed, swapped = graphs.step(np.array([30, 30]), np.array([1, 0]), past, cross, mask)
    np.testing.assert_allclose(crossed, straight[::-1], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(swapped, kept[:, :, ::-1])
    assert np.abs(straight[0] - straight[1]).max() > 1e-2, "two pasts that cannot be told apart test nothing"


@pytest.mark.parametrize(
    "config",
    [DecodeConfig(), DecodeConfig(1, 1, 5), DecodeConfig(4, 2, 1), DecodeConfig(8, 8, 30), DecodeConfig(32, 20, 6)],
)
def test_fast_search_equals_generate(model, graphs, config):
    searcher = FastSearcher(graphs, config)
    lengths = []
    for prompt in random_prompts(12, np.random.default_rng(config.beams)):
        inputs = collate_prompts([prompt], 1)
        found, expected = searcher.search(*inputs), reference_search(model, *inputs, config)
        assert torch.equal(found.tokens, expected.tokens)
        assert torch.allclose(found.scores, expected.scores, rtol=0, atol=1e-4)
        lengths += (found.tokens != 1).sum(dim=2).flatten().tolist()
    assert len(set(lengths)) > 1 or config.max_new_tokens == 1 or config.beams == 1, "queries of one length only"


def test_fast_search_returns_fewer_or_more_results_as_asked(model, graphs):
    inputs = collate_prompts(random_prompts(1, np.random.default_rng(5)), 1)
    searcher, other = FastSearcher(graphs, DecodeConfig()), BeamSearcher(model, DecodeConfig())
    for results in (1, 16, 20, 32):
        found, expected = searcher.search(*inputs, results=results), other.search(*inputs, results=results)
        assert torch.equal(found.tokens, expected.tokens)


@pytest.fixture(scope="module")
def known():
    """Four hundred queries of one to five tokens, many of which begin alike, as tokens with their end."""
    rng = np.random.default_rng(3)
    return sorted({(*rng.integers(6, 40, rng.integers(1, 6)).tolist(), 2) for _ in range(400)})


@pytest.mark.parametrize("among", [False, True])
@pytest.mark.parametrize("number", [5, 400])  # fewer queries than places; more than are looked at in a step
def test_fast_search_over_a_trie_equals_the_searches(model, graphs, known, number, among):
    config = DecodeConfig(known=True, among_known=among, max_new_tokens=6)
    held = known[:: max(1, len(known) // number)][:number]
    trie = Trie(held, VOCABULARY)
    searcher, other = FastSearcher(graphs, config, trie), BeamSearcher(model, config, trie)
    rows = set()
    for prompt in random_prompts(12, np.random.default_rng(number)):
        inputs = collate_prompts([prompt], 1)
        found, expected = searcher.search(*inputs), other.search(*inputs)
        assert torch.equal(found.tokens, expected.tokens)
        assert torch.allclose(found.scores, expected.scores, rtol=0, atol=1e-4)
        if not among:  # which generate cannot
            reference = reference_search(model, *inputs, config, trie)
            there = found.scores[0] > -1e8
            assert torch.equal(found.tokens[0][there], reference.tokens[0][there])
        rows |= {tuple(row[row != 1].tolist()) for row in found.tokens[0] if (row != 1).any()}
    assert rows <= {row for row in held} and len(rows) >= min(number, 20)


def test_a_prompt_beyond_the_positions_is_refused(graphs):
    long = [[[7]] * (DEEP.max_positions + 1)]
    with pytest.raises(ValueError, match="41 positions and the model has 40; shorten the prompt"):
        FastSearcher(graphs, DecodeConfig()).search(*collate_prompts(long, 1))
    whole = collate_prompts([[[7]] * (DEEP.max_positions - 1)], 1)  # padded up to all positions
    assert FastSearcher(graphs, DecodeConfig()).search(*whole).scores.shape == (1, 16)


def test_an_export_replaces_the_older_one_whole(exported, model, tmp_path, monkeypatch):
    target = tmp_path / "graphs"
    target.mkdir()
    (target / "generator.json").write_text("{}")

    def fail(*_, **__):
        raise RuntimeError("disk full")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(RuntimeError, match="disk full"):
        export_onnx(model, target)
    assert [path.name for path in tmp_path.iterdir()] == ["graphs"], "a half-written folder is left"
    assert (target / "generator.json").read_text() == "{}"
    assert sorted(path.name for path in exported.iterdir()) == ["decoder_step.onnx", "encoder.onnx", "generator.json"]


def test_what_cannot_be_exported(tokenizer, model, graphs, tmp_path):
    causal = build_generator(replace(DEEP, architecture="decoder-only"), tokenizer, 0)
    with pytest.raises(OnnxError, match="the model is decoder-only"):
        export_onnx(causal, tmp_path / "causal")
    small = build_generator(DEEP, tokenizer, 0).double()
    with pytest.raises(OnnxError, match=r"holds torch.float64; expected torch.float32"):
        export_onnx(small, tmp_path / "double")
    assert not list(tmp_path.iterdir())
    with pytest.raises(OnnxError, match="holds no generator.json; write it with export_onnx"):
        OnnxGenerator(tmp_path)
    with pytest.raises(ValueError, match="known is True and there is no trie"):
        FastSearcher(graphs, DecodeConfig(known=True))
    for trie in (Trie([[7, 3]], VOCABULARY), Trie([[7, 2]], VOCABULARY + 1)):
        with pytest.raises(ValueError, match="make the trie with the model's tokeniser"):
            FastSearcher(graphs, DecodeConfig(known=True), trie)
    with pytest.raises(ValueError, match="more than that many tokens"):
        FastSearcher(graphs, DecodeConfig(beams=400))
    with pytest.raises(ValueError, match="takes one request and was given 2"):
        FastSearcher(graphs, DecodeConfig()).search(*collate_prompts([[[7]], [[8]]], 1))
