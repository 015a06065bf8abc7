"""The embedded model's tower: shapes, what open_clip and timm expect of it, and that it trains."""

import open_clip
import pytest
import timm
import torch

from qks.core import ASSETS
from qks.vlp.pocket_tower import PocketTower, ResidualStage, qks_pocket_tower


@pytest.mark.parametrize("size", [2, 7, 8, 16])
def test_a_stage_halves_the_resolution(size):
    out = ResidualStage(3, 5)(torch.randn(2, 3, size, size))
    assert out.shape == (2, 5, -(-size // 2), -(-size // 2)) and (out >= 0).all()


@pytest.mark.parametrize(
    "channels, depth, grid", [((24, 48, 96, 192), 2, 6), ((4, 8, 16, 64), 1, 3), ((4, 8, 16, 128), 0, 2)]
)
def test_shapes(channels, depth, grid):
    tower = PocketTower(channels, depth, grid).eval()
    images = torch.randn(2, 3, 16 * grid, 16 * grid)
    tokens = tower.forward_features(images)
    assert tokens.shape == (2, grid * grid, channels[-1]) and tower.num_features == channels[-1]
    assert len(tower.blocks) == depth
    torch.testing.assert_close(tower(images), tokens.mean(1))
    assert torch.equal(tower.forward_head(tokens), tokens.mean(1))


def test_tokens_know_their_place():
    tower = PocketTower((4, 8, 16, 64), 1, 2).eval()
    tokens = tower.forward_features(torch.zeros(1, 3, 32, 32))[0]  # [4, D]
    assert (tokens[0] - tokens[3]).abs().max() > 1e-3


def test_gradients_reach_every_weight():
    torch.manual_seed(0)
    tower = PocketTower((4, 8, 16, 64), 1, 2)
    (tower(torch.randn(2, 3, 32, 32)) ** 3).sum().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in tower.parameters())


def test_classifier_interface():
    tower = PocketTower((4, 8, 16, 64), 1, 2)
    assert tower.reset_classifier(0) is None and tower.reset_classifier(0, global_pool="avg") is None
    for wrong in ({"num_classes": 5}, {"global_pool": "max"}):
        with pytest.raises(ValueError, match="no classifier"):
            tower.reset_classifier(**wrong)


def test_timm_knows_it_by_name():
    assert "qks_pocket_tower" in timm.list_models("qks_*")
    tower = timm.create_model("qks_pocket_tower", num_classes=0, global_pool="avg")
    assert isinstance(tower, PocketTower) and isinstance(qks_pocket_tower(), PocketTower)


def test_open_clip_builds_the_embedded_model_itself():
    model = open_clip.create_model(f"local-dir:{ASSETS / 'pocket_vlp'}").eval()
    size = model.visual.image_size[0]
    with torch.no_grad():
        assert model.visual.trunk.forward_features(torch.zeros(1, 3, size, size)).shape[1] >= 36
        assert model.encode_image(torch.zeros(1, 3, size, size)).isfinite().all()
