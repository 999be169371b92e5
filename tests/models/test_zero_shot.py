"""Zero-shot heads against their formula, written out in NumPy, and against open_clip's own builder."""

import numpy as np
import open_clip
import pytest
import torch

from mergeability.errors import UserError
from mergeability.models.zero_shot import classify, zero_shot_head

NAMES = ["apple", "pear", "plum"]
TEMPLATES = ["a photo of a {}", "one {}"]


def test_the_head_is_the_scaled_normalised_mean_over_templates(tiny_model):
    model = tiny_model()
    clip = model.build()
    head = zero_shot_head(clip, model.tokenize, NAMES, TEMPLATES).numpy()
    for row, name in enumerate(NAMES):
        with torch.no_grad():
            texts = [
                clip.encode_text(model.tokenize([t.format(name)]))[0].double().numpy() for t in TEMPLATES
            ]
        mean = np.mean([text / np.linalg.norm(text) for text in texts], axis=0)
        expected = mean / np.linalg.norm(mean) * np.exp(clip.logit_scale.item())
        np.testing.assert_allclose(head[row], expected, rtol=1e-4, atol=1e-5)


def test_the_head_agrees_with_open_clips_builder(tiny_model):
    model = tiny_model()
    clip = model.build()
    head = zero_shot_head(clip, model.tokenize, NAMES, TEMPLATES)
    theirs = open_clip.build_zero_shot_classifier(
        clip, model.tokenize, NAMES, TEMPLATES, num_classes_per_batch=None
    )
    torch.testing.assert_close(head, theirs.T * clip.logit_scale.exp().detach(), rtol=1e-4, atol=1e-5)


def test_the_head_is_frozen_and_the_model_untouched(tiny_model):
    model = tiny_model()
    clip = model.build()
    before = {name: tensor.clone() for name, tensor in clip.state_dict().items()}
    assert not zero_shot_head(clip, model.tokenize, NAMES, TEMPLATES).requires_grad
    assert all(torch.equal(before[name], tensor) for name, tensor in clip.state_dict().items())


def test_logits_are_scaled_cosines_whatever_the_length_of_the_features():
    head = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    features = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    torch.testing.assert_close(classify(features, head), torch.tensor([[1.2, 1.6], [1.2, 1.6]]))


@pytest.mark.parametrize(("names", "templates"), [([], TEMPLATES), (NAMES, [])])
def test_a_head_needs_a_class_and_a_template(names, templates, tiny_model):
    model = tiny_model()
    with pytest.raises(UserError, match="at least one class name and one template"):
        zero_shot_head(model.build(), model.tokenize, names, templates)
