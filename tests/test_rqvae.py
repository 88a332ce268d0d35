"""Residual quantisation against a library, and the health of a trained codebook."""

import numpy as np
import pytest
import torch
from vector_quantize_pytorch import ResidualVQ

from onesug_lite.rqvae import RQVAE, RQVAEConfig, codebook_report, load_rqvae, nearest_code, save_rqvae
from onesug_lite.rqvae_training import revive_codes, start_codebooks, train_rqvae

SMALL = RQVAEConfig(
    levels=3,
    codes=16,
    latent=8,
    hidden=32,
    steps=250,
    warmup_steps=80,
    batch_size=256,
    revive_every=20,
    learning_rate=3e-3,
)


def clustered(seed: int = 0, texts: int = 1200, dim: int = 24) -> np.ndarray:
    """Unit vectors around 12 centres, each with 5 centres of its own."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(12, dim))
    fine = coarse[:, None] + 0.5 * rng.normal(size=(12, 5, dim))
    points = fine.reshape(60, dim)[rng.integers(0, 60, texts)] + 0.1 * rng.normal(size=(texts, dim))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def trained():
    return train_rqvae(clustered(), SMALL, torch.Generator().manual_seed(0))


def test_quantisation_equals_the_library():
    torch.manual_seed(0)
    config = RQVAEConfig(levels=4, codes=32, latent=6)
    model = RQVAE(10, config)
    library = ResidualVQ(dim=6, num_quantizers=4, codebook_size=32, rotation_trick=False).eval()
    with torch.no_grad():
        model.codebooks.normal_()
        for level, layer in enumerate(library.layers):
            layer._codebook.embed.copy_(model.codebooks[level][None])
            layer._codebook.initted.fill_(True)
    latent = torch.randn(500, 6)
    expected, codes, _ = library(latent)
    found, quantised, _ = model.quantise(latent)
    assert torch.equal(found, codes)
    assert torch.allclose(quantised, expected, atol=1e-5)


def test_nearest_code_by_hand():
    codebook = torch.tensor([[0.0, 0.0], [4.0, 0.0], [4.0, 0.0]])
    assert nearest_code(torch.tensor([[1.9, 5.0], [2.1, 5.0], [90.0, 0.0]]), codebook).tolist() == [0, 1, 1]


def test_losses_are_their_formulas():
    torch.manual_seed(1)
    config = RQVAEConfig(levels=2, codes=3, latent=2, commitment=0.25)
    model = RQVAE(4, config)
    with torch.no_grad():
        model.codebooks.normal_()
    x = torch.randn(5, 4)
    output = model(x)
    residual, commitment = model.encoder(x), 0.0
    for level in range(2):
        code = model.codebooks[level][output.codes[:, level]]
        commitment += 1.25 * ((residual - code) ** 2).sum(1).mean()
        residual = residual - code
    quantised = model.encoder(x) - residual
    assert torch.allclose(output.commitment_loss, commitment)
    assert torch.allclose(output.quantised, quantised, atol=1e-6)
    assert torch.allclose(output.reconstruction, model.decoder(quantised), atol=1e-6)
    assert torch.allclose(output.reconstruction_loss, ((x - model.decoder(quantised)) ** 2).sum(1).mean())


def test_the_reconstruction_reaches_the_encoder_straight_through():
    torch.manual_seed(2)
    model = RQVAE(4, RQVAEConfig(levels=2, codes=3, latent=2))
    x = torch.randn(6, 4)
    output = model(x)
    output.reconstruction_loss.backward()
    assert model.encoder[0].weight.grad.abs().sum() > 0
    assert model.codebooks.grad is None  # the codes learn from their residuals alone


def test_every_parameter_moves():
    torch.manual_seed(3)
    model = RQVAE(24, SMALL)
    data = torch.from_numpy(clustered())
    start_codebooks(model, data, torch.Generator().manual_seed(0))
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    output = model(data)
    (output.reconstruction_loss + output.commitment_loss).backward()
    optimiser.step()
    moved = {name: (value != before[name]) for name, value in model.named_parameters()}
    assert all(bool(value.any()) for value in moved.values())
    assert bool(moved["codebooks"].any(dim=2).float().mean() > 0.95)  # each code that some text chose


def test_dead_codes_are_revived():
    torch.manual_seed(4)
    model = RQVAE(24, SMALL)
    data = torch.from_numpy(clustered())
    start_codebooks(model, data, torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.codebooks[0, 4:] = 1e3  # nobody is near
    dead = torch.zeros(3, 16, dtype=torch.bool)
    dead[0, 4:] = True
    codes = model.encode(data)
    assert len(codes[:, 0].unique()) <= 4
    assert revive_codes(model, data, dead, torch.Generator().manual_seed(0)) == 12
    assert len(model.encode(data)[:, 0].unique()) >= 14
    with torch.no_grad():  # a revived code is the residual of some text
        latent = model.encoder(data)
    assert torch.cdist(model.codebooks[0, 4:], latent).amin(dim=1).max() < 1e-3


def test_a_trained_codebook_is_healthy(trained):
    data = torch.from_numpy(clustered())
    output = trained.model(data)
    spread = float((data - data.mean(0)).square().sum(1).mean())
    assert float(output.reconstruction_loss.detach()) < 0.25 * spread
    report = codebook_report(output.codes, SMALL)
    assert report["share_used"].min() > 0.9
    assert report["entropy_bits"].min() > 3.2  # of 4
    assert report["collisions"].is_sorted(descending=True) and report["collisions"][-1] < 0.97
    # Each level tells more: decoding the first levels alone is worse.
    with torch.no_grad():
        errors, quantised = [], torch.zeros(len(data), SMALL.latent)
        for level in range(SMALL.levels):
            quantised = quantised + trained.model.codebooks[level][output.codes[:, level]]
            errors.append(float((data - trained.model.decoder(quantised)).square().sum(1).mean()))
    assert errors == sorted(errors, reverse=True)


def test_history_tells_the_phases(trained):
    history = trained.history
    assert history["step"].is_sorted() and history["step"][-1] == SMALL.steps - 1
    assert set(history["phase"]) == {"autoencoder", "quantised"}
    assert history.filter(history["phase"] == "autoencoder")["commitment_loss"].max() == 0
    assert history["used"][-1] > 0.9


def test_near_texts_share_coarse_codes(trained):
    data = clustered()
    codes = trained.model.encode(data).numpy()
    cosine = data @ data.T
    same = codes[:, None, 0] == codes[None, :, 0]
    assert cosine[same].mean() > cosine[~same].mean() + 0.4


def test_the_same_seed_gives_the_same_codes(trained, tmp_path):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    again = train_rqvae(clustered(), SMALL, torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), state)
    assert again.history.equals(trained.history)
    save_rqvae(trained.model, tmp_path / "one")
    save_rqvae(again.model, tmp_path / "two")
    for name in ("rqvae.safetensors", "rqvae.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    loaded = load_rqvae(tmp_path / "one")
    assert loaded.config == SMALL
    assert torch.equal(loaded.encode(clustered()), trained.model.encode(clustered()))
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["rqvae.json", "rqvae.safetensors"]


def test_fewer_texts_than_codes(trained):
    few = np.repeat(clustered()[:5], 3, axis=0)
    config = RQVAEConfig(levels=2, codes=16, latent=4, steps=30, warmup_steps=5, batch_size=8, revive_every=10)
    model = train_rqvae(few, config, torch.Generator().manual_seed(0)).model
    codes = model.encode(few)
    assert codes.shape == (15, 2) and bool(torch.isfinite(model.codebooks).all())
    assert torch.equal(codes[0], codes[1])
    assert model.encode(np.zeros((0, 24), dtype=np.float32)).shape == (0, 2)


def test_the_report_by_hand():
    codes = np.array([[0, 0], [0, 1], [1, 2], [1, 2]])
    report = codebook_report(codes, RQVAEConfig(levels=2, codes=4))
    assert report["used"].to_list() == [2, 3]
    assert report["share_used"].to_list() == [0.5, 0.75]
    assert report["entropy_bits"].to_list() == pytest.approx([1.0, 1.5])
    assert report["max_entropy_bits"].to_list() == [2.0, 2.0]
    assert report["collisions"].to_list() == [1.0, 0.5]


def test_senseless_input_is_refused(tmp_path):
    broken = clustered()
    broken[7, 3] = np.nan
    with pytest.raises(ValueError, match="embedding 7 is not finite"):
        train_rqvae(broken, SMALL, torch.Generator())
    with pytest.raises(ValueError, match=r"shape \(0, 24\)"):
        train_rqvae(broken[:0], SMALL, torch.Generator())
    with pytest.raises(ValueError, match="RQVAEConfig.codes is 0"):
        RQVAEConfig(codes=0)
    with pytest.raises(ValueError, match="fewer than steps"):
        RQVAEConfig(steps=10, warmup_steps=10)
    with pytest.raises(FileNotFoundError, match="holds no RQ-VAE"):
        load_rqvae(tmp_path)
