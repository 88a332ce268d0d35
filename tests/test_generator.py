"""The generator: its training is repeatable, survives an interruption and moves every parameter."""

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from onesug_lite import trainer, training
from onesug_lite.batches import collate, collate_prompts, pad
from onesug_lite.generator import (
    GeneratorConfig,
    build_generator,
    embed_prompt,
    load_generator,
    query_logits,
    save_generator,
)
from onesug_lite.prompt import PromptConfig
from onesug_lite.tokenizer import train_tokenizer
from onesug_lite.trainer import fingerprint, set_seed
from onesug_lite.training import Examples, TrainConfig, plan_batches, train_supervised

SMALL = GeneratorConfig(d_model=32, encoder_layers=1, decoder_layers=1, heads=2, ffn=64, dropout=0.1, max_positions=48)
TRAIN = TrainConfig(steps=12, batch_size=8, warmup=2, log_every=2, save_every=4, group_batches=2)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["red shoes", "blue shoes", "red phone case"], PromptConfig(vocab_size=280, min_frequency=1))


@pytest.fixture(scope="module")
def examples(tokenizer):
    rng = np.random.default_rng(0)
    prompts = [[0, *rng.integers(6, len(tokenizer), rng.integers(3, 30)).tolist()] for _ in range(50)]
    return Examples(prompts, [[*prompt[1:3], 2] for prompt in prompts])  # copy the first two tokens


@pytest.fixture(scope="module", autouse=True)
def repeatable():
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    set_seed(0, threads=1)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = filled


def weights(model):
    return {name: values.clone() for name, values in model.state_dict().items()}


def same(left, right):
    return all(torch.equal(left[name], right[name]) for name in left) and left.keys() == right.keys()


def train(tokenizer, examples, work, config=TRAIN, seed=0):
    return train_supervised(build_generator(SMALL, tokenizer, 0), examples, config, seed, work)


@pytest.fixture(scope="module")
def uninterrupted(tokenizer, examples, tmp_path_factory):
    result = train(tokenizer, examples, tmp_path_factory.mktemp("runs") / "work")
    return weights(result.model), result.history


def interrupt_after(monkeypatch, batches, error=KeyboardInterrupt):
    """Raise when the batch of a step is made, as Ctrl-C would at that moment."""
    made = 0

    def failing(*arguments):
        nonlocal made
        made += 1
        if made > batches:
            raise error
        return collate(*arguments)

    monkeypatch.setattr(training, "collate", failing)


@pytest.mark.parametrize("batches", [2, 5, 9, 11])  # before the first checkpoint, between two, after the last
def test_interrupted_run_goes_on_to_the_same_bytes(tokenizer, examples, uninterrupted, tmp_path, monkeypatch, batches):
    work = tmp_path / "work"
    model = build_generator(SMALL, tokenizer, 0)
    given = weights(model)
    interrupt_after(monkeypatch, batches)
    with pytest.raises(KeyboardInterrupt):
        train_supervised(model, examples, TRAIN, 0, work)
    assert same(given, weights(model)), "an interrupted call must leave the model as it was"
    assert "forward" not in vars(model) and not model.training
    assert bool(list(work.glob("checkpoint-*"))) == (batches >= 4)

    monkeypatch.setattr(training, "collate", collate)
    torch.rand(3), np.random.rand(3)  # noqa: NPY002  another state of the global generators
    result = train_supervised(model, examples, TRAIN, 0, work)
    assert same(uninterrupted[0], weights(result.model))
    assert result.history.equals(uninterrupted[1])
    assert not work.exists()


def test_resuming_does_not_start_from_the_beginning(tokenizer, examples, tmp_path, monkeypatch):
    interrupt_after(monkeypatch, 9)
    with pytest.raises(KeyboardInterrupt):
        train(tokenizer, examples, tmp_path)
    monkeypatch.setattr(training, "collate", collate)
    assert trainer._checkpoint_of(tmp_path, (tmp_path / "run.txt").read_text()).name == "checkpoint-8"


def test_checkpoint_cut_short_falls_back_to_the_one_before(tokenizer, examples, uninterrupted, tmp_path, monkeypatch):
    interrupt_after(monkeypatch, 9)
    with pytest.raises(KeyboardInterrupt):
        train(tokenizer, examples, tmp_path)
    state = tmp_path / "checkpoint-8" / "trainer_state.json"
    state.write_text(state.read_text()[:50])
    monkeypatch.setattr(training, "collate", collate)
    result = train(tokenizer, examples, tmp_path)
    assert same(uninterrupted[0], weights(result.model))


def test_checkpoints_of_another_run_are_not_used(tokenizer, examples, uninterrupted, tmp_path, monkeypatch):
    interrupt_after(monkeypatch, 9)
    with pytest.raises(KeyboardInterrupt):
        train(tokenizer, examples, tmp_path, seed=1)
    monkeypatch.setattr(training, "collate", collate)
    (tmp_path / "mine.txt").write_text("kept")
    result = train(tokenizer, examples, tmp_path, seed=0)
    assert same(uninterrupted[0], weights(result.model))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_another_seed_gives_another_model(tokenizer, examples, uninterrupted, tmp_path):
    assert not same(uninterrupted[0], weights(train(tokenizer, examples, tmp_path, seed=1).model))


def test_every_parameter_moves(tokenizer, examples, uninterrupted):
    before = build_generator(SMALL, tokenizer, 0)
    moved = uninterrupted[0]
    for name, values in before.named_parameters():
        assert not torch.equal(values, moved[name]), f"{name} did not move"
        assert moved[name].isfinite().all()


def test_loss_curve(uninterrupted):
    history = uninterrupted[1]
    assert history.schema == {"step": pl.Int64, "loss": pl.Float64}
    assert history["step"].to_list() == [2, 4, 6, 8, 10, 12]
    assert history["loss"][-1] < history["loss"][0] < 1.1 * np.log(280)


@pytest.mark.parametrize("bf16", [False, True])
def test_training_learns_to_copy(tokenizer, examples, tmp_path, bf16):
    config = TrainConfig(steps=120, batch_size=25, learning_rate=5e-3, warmup=10, log_every=20, bf16=bf16)
    result = train(tokenizer, examples, tmp_path, config)
    assert result.model.training is False
    assert result.history["loss"][-1] < 3.0  # ln 280 = 5.6 for a model that knows nothing
    batch = collate(examples.prompts[:4], examples.targets[:4], 1)
    with torch.inference_mode():
        logits = result.model(**batch).logits
    assert logits.dtype == torch.float32
    save_generator(result.model, tokenizer, tmp_path / "model")
    with torch.inference_mode():
        assert torch.equal(load_generator(tmp_path / "model")[0](**batch).logits, logits)


def test_second_training_of_a_model_is_in_bf16_too(tokenizer, examples, tmp_path):
    def precision(module, inputs, output):
        seen.append(output.dtype)

    model = build_generator(SMALL, tokenizer, 0)
    model.model.encoder.layers[0].fc1.register_forward_hook(precision)
    for _ in range(2):
        seen = []
        train_supervised(model, examples, TrainConfig(steps=1, batch_size=4, bf16=True), 0, tmp_path / "work")
        assert seen == [torch.bfloat16]


def test_build_leaves_the_global_generator_alone(tokenizer):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = build_generator(SMALL, tokenizer, 7)
    assert torch.equal(torch.rand(3), expected)
    assert same(weights(first), weights(build_generator(SMALL, tokenizer, 7)))
    assert not same(weights(first), weights(build_generator(SMALL, tokenizer, 8)))


def test_plan_shows_every_example_once_a_pass():
    lengths = np.random.default_rng(0).integers(5, 60, 64)
    config = TrainConfig(steps=24, batch_size=8, group_batches=4)
    plan = plan_batches(lengths, config, 0)
    assert plan.shape == (24, 8)
    for start in range(0, 24, 8):
        assert sorted(plan[start : start + 8].ravel()) == list(range(64))
    assert not np.array_equal(np.sort(plan[0]), np.sort(plan[8]))
    assert np.array_equal(plan, plan_batches(lengths, config, 0))
    spread = np.ptp(lengths[plan], axis=1).mean()
    ungrouped = plan_batches(lengths, TrainConfig(steps=24, batch_size=8, group_batches=1), 0)
    assert spread < 0.5 * np.ptp(lengths[ungrouped], axis=1).mean()


def test_plan_with_fewer_examples_than_a_batch():
    plan = plan_batches(np.array([3, 4, 5]), TrainConfig(steps=2, batch_size=8), 0)
    assert np.bincount(plan.ravel(), minlength=3).tolist() == [6, 5, 5] or plan.size == 16


def test_collate_by_hand():
    batch = collate([[0, 7, 8], [0]], [[9, 2], [2]], pad_id=1)
    assert batch["input_ids"].tolist() == [[0, 7, 8, 1], [0, 1, 1, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]
    assert batch["labels"].tolist() == [[9, 2], [2, -100]]
    assert pad([[]], 1).tolist() == [[1]]


def test_padding_changes_no_loss(tokenizer):
    model = build_generator(SMALL, tokenizer, 0)
    prompts, targets = [[0, 7, 8], [0, 9, 10, 11, 12, 13, 14, 15, 16, 17]], [[20, 2], [21, 22, 23, 2]]
    with torch.inference_mode():
        together = model(**collate(prompts, targets, 1)).loss * 6
        apart = sum(model(**collate([p], [t], 1)).loss * len(t) for p, t in zip(prompts, targets, strict=True))
    assert torch.allclose(together, apart, atol=1e-4)


def test_fingerprint_tells_runs_apart(tokenizer, examples):
    model = build_generator(SMALL, tokenizer, 0)
    base = fingerprint(model, TRAIN, 0, examples.prompts)
    assert base == fingerprint(build_generator(SMALL, tokenizer, 0), TRAIN, 0, examples.prompts)
    others = [
        fingerprint(build_generator(SMALL, tokenizer, 1), TRAIN, 0, examples.prompts),
        fingerprint(model, TrainConfig(), 0, examples.prompts),
        fingerprint(model, TRAIN, 1, examples.prompts),
        fingerprint(model, TRAIN, 0, examples.prompts[1:]),
        fingerprint(model, TRAIN, 0, [[1], [2, 3]]),
        fingerprint(model, TRAIN, 0, [[1, 2], [3]]),
    ]
    assert len({base, *others}) == 7


@pytest.mark.parametrize(
    ("prompts", "targets", "message"),
    [
        ([], [], "no examples to train on"),
        ([[0]], [], "1 prompts and 0 targets"),
        ([[0] * 49], [[2]], "longest of the prompts has 49 tokens and the model 48 positions"),
        ([[0]], [[2] * 60], "longest of the targets has 60 tokens"),
    ],
)
def test_examples_that_cannot_be_trained_on(tokenizer, tmp_path, prompts, targets, message):
    with pytest.raises(ValueError, match=message):
        train(tokenizer, Examples(prompts, targets), tmp_path)


def test_save_replaces_a_folder_whole(tokenizer, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    first, second = build_generator(SMALL, tokenizer, 0), build_generator(SMALL, tokenizer, 1)
    save_generator(first, tokenizer, folder)
    monkeypatch.setattr(tokenizer, "save_pretrained", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        save_generator(second, tokenizer, folder)
    assert same(weights(load_generator(folder)[0]), weights(first))
    monkeypatch.undo()
    save_generator(second, tokenizer, folder)
    model, loaded = load_generator(folder)
    assert same(weights(model), weights(second))
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert "model.shared.weight" in load_file(folder / "model.safetensors")


def test_load_from_an_empty_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a folder written by save_generator"):
        load_generator(tmp_path)


def test_a_checkpoint_is_one_parameter(tokenizer, examples, tmp_path):
    original = build_generator(SMALL, tokenizer, 3)
    original.generation_config.no_repeat_ngram_size = 3
    original.generation_config.forced_bos_token_id = 0
    original.config.save_pretrained(tmp_path / "bart")
    save_generator(original, tokenizer, tmp_path / "bart")
    settings = json.loads((tmp_path / "bart" / "generation_config.json").read_text())
    assert settings["forced_bos_token_id"] == 0
    model = build_generator(GeneratorConfig(checkpoint=str(tmp_path / "bart")), tokenizer, 0)
    assert same(weights(model), weights(original))
    assert model.generation_config.forced_bos_token_id is None
    assert model.generation_config.no_repeat_ngram_size in (None, 0)
    larger = train_tokenizer(["another vocabulary with many longer words"] * 2, PromptConfig(vocab_size=290))
    assert len(larger) == 290
    with pytest.raises(ValueError, match="use the checkpoint's own tokeniser"):
        build_generator(GeneratorConfig(checkpoint=str(tmp_path / "bart")), larger, 0)


def test_another_architecture_trains_too(tokenizer, examples, tmp_path):
    from transformers import T5Config, T5ForConditionalGeneration

    shape = T5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, pad_token_id=1,
        eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    save_generator(T5ForConditionalGeneration(shape), tokenizer, tmp_path / "t5")
    model = build_generator(GeneratorConfig(checkpoint=str(tmp_path / "t5")), tokenizer, 0)
    result = train_supervised(model, examples, TrainConfig(steps=2, batch_size=4, log_every=1), 0, tmp_path / "work")
    assert result.history["loss"].is_finite().all()


# ---------------------------------------------------------------- several tokens a position, and decoder-only models
PROMPTS = [[[0], [7, 8, 9], [10]], [[0], [11, 12]]]
TARGETS = [[20, 21, 2], [22, 2], [23, 24, 25, 2], [26, 2]]


def test_tokens_that_share_a_position_enter_as_one_vector():
    weight = torch.randn(30, 4)
    input_ids, mask = collate_prompts(PROMPTS, 1)
    assert input_ids.shape == (2, 4, 3) and mask.tolist() == [[1, 1, 1, 0], [1, 1, 0, 0]]
    found = embed_prompt(weight, input_ids, 1)
    assert torch.allclose(found[0, 1], weight[7:10].sum(dim=0) / 3**0.5)
    assert torch.allclose(found[1, 1], weight[11:13].sum(dim=0) / 2**0.5)
    assert torch.equal(found[0, 2], weight[10]) and not found[1, 2:].any()
    flat, _ = collate_prompts([[0, 7], [0]], 1)
    assert torch.equal(embed_prompt(weight, flat, 1)[0, :2], weight[[0, 7]])


@pytest.mark.parametrize("kind", ["encoder-decoder", "decoder-only"])
def test_queries_are_scored_as_the_model_itself_scores_them(tokenizer, kind):
    """Several queries a prompt, and padding, against one call of the model for each, without either."""
    model = build_generator(replace(SMALL, architecture=kind), tokenizer, 0)
    assert model.config.is_encoder_decoder == (kind == "encoder-decoder")
    flat = [[0, 7, 8, 9, 10], [0, 11, 12]]
    with torch.no_grad():
        together = query_logits(model, **collate(flat, TARGETS, 1))
        for row, target in enumerate(TARGETS):
            prompt = flat[row // 2]
            if kind == "encoder-decoder":
                alone = model(input_ids=torch.tensor([prompt]), labels=torch.tensor([target])).logits[0]
            else:
                alone = model(input_ids=torch.tensor([[*prompt, 2, *target[:-1]]])).logits[0, len(prompt) :]
            assert torch.allclose(together[row, : len(target)], alone, atol=1e-5)


@pytest.mark.parametrize("kind", ["encoder-decoder", "decoder-only"])
def test_both_kinds_learn_from_pooled_prompts_and_are_read_again(tokenizer, examples, tmp_path, kind):
    pooled = [[prompt[:1], *([token, 6] for token in prompt[1:3])] for prompt in examples.prompts]
    config = TrainConfig(steps=150, batch_size=25, learning_rate=5e-3, warmup=10, log_every=30)
    model = build_generator(replace(SMALL, architecture=kind, dropout=0.0), tokenizer, 0)
    result = train_supervised(model, examples._replace(prompts=pooled), config, 0, tmp_path / "work")
    assert result.history["loss"][-1] < 3.5
    save_generator(result.model, tokenizer, tmp_path / "model")
    again, read = load_generator(tmp_path / "model")
    texts = ["red shoes", "</s> x", "blue phone"]
    assert read(texts)["input_ids"] == tokenizer(texts)["input_ids"] and read.pad_token_id == tokenizer.pad_token_id
    batch = collate(pooled[:3], examples.targets[:3], 1)
    with torch.no_grad():
        assert torch.equal(query_logits(again, **batch), query_logits(result.model, **batch))


def test_unknown_architecture():
    with pytest.raises(ValueError, match="architecture is 'encoder'; expected one of encoder-decoder, decoder-only"):
        GeneratorConfig(architecture="encoder")
