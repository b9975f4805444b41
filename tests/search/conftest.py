"""Elastic models that were not calibrated, which is all that a search needs."""

import pytest
import torch

from quept.assembly import make_elastic
from quept.layers import ElasticLinear
from quept.recipes import load_recipe


@pytest.fixture(scope="session")
def elastic(tiny_model):
    """`elastic(family="llama", recipe="paper", bits=(2, 4, 8))` builds a small model with elastic linears."""

    def build(family="llama", recipe="paper", bits=(2, 4, 8)):
        model = tiny_model(family, num_hidden_layers=3) if family == "llama" else tiny_model(family)
        settings = load_recipe(recipe).with_bits(bits)
        make_elastic(model, settings.updated(adapter={"kind": "none"}, smoothing={"enabled": False}))
        model.requires_grad_(False)
        for layer in model.modules():
            if isinstance(layer, ElasticLinear):
                for logits in layer.clipping.values():
                    logits.fill_(20.0)  # nothing is clipped
        return model

    return build


@pytest.fixture
def model(elastic):
    return elastic()


@pytest.fixture
def inputs():
    return torch.randint(96, (6, 12), generator=torch.Generator().manual_seed(5))
