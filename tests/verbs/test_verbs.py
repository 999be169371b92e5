"""The three verbs as functions: against NumPy, against the analysis of the same models, and on bad input."""

import json

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from safetensors.torch import load_file, save_file
from torch import nn

import mergeability
from mergeability import UserError, compare, members, merge, merging, predict
from mergeability.examples import tiny_clip, tiny_files, tiny_own_models
from mergeability.pipeline.request import ProfileSettings
from mergeability.verbs import defaults
from mergeability.verbs.architecture import image_models, model_called, recognised
from mergeability.verbs.sources import named
from mergeability.weights.in_memory import open_in_memory


@pytest.fixture
def models():
    generator = torch.Generator().manual_seed(0)
    base = {
        "blocks.0.weight": torch.randn(6, 5, generator=generator),
        "blocks.0.bias": torch.randn(6, generator=generator),
        "blocks.1.weight": torch.randn(4, 6, generator=generator),
    }

    def tuned():
        return {
            name: value + 0.1 * torch.randn(value.shape, generator=generator) for name, value in base.items()
        }

    return base, {"a": tuned(), "b": tuned(), "c": tuned()}


def flat(state):
    return np.concatenate([state[name].double().numpy().ravel() for name in sorted(state)])


@pytest.fixture
def files(models, tmp_path):
    base, tuned = models
    save_file(base, tmp_path / "base.safetensors")
    for name, state in tuned.items():
        save_file(state, tmp_path / f"{name}.safetensors")
    return tmp_path / "base.safetensors", [tmp_path / f"{name}.safetensors" for name in tuned]


def test_comparing_gives_the_cosines_of_numpy(models):
    base, tuned = models
    table = compare(base, tuned).table
    assert table.shape == (3, 18)
    vectors = {name: flat(state) - flat(base) for name, state in tuned.items()}
    for (a, b), value in table["task_vector_cosine_similarity"].items():
        u, v = vectors[a], vectors[b]
        assert value == pytest.approx(u @ v / np.linalg.norm(u) / np.linalg.norm(v), abs=1e-5)


def test_files_state_dicts_and_modules_give_the_same_metrics(models, files):
    base, tuned = models
    of_states = compare(base, tuned).table
    of_files = compare(*files).table
    np.testing.assert_array_equal(of_files.to_numpy(), of_states.to_numpy())

    def module(state):
        network = nn.ParameterDict(
            {name.replace(".", "_"): nn.Parameter(value) for name, value in state.items()}
        )
        return network.eval()

    of_modules = compare(module(base), {name: module(state) for name, state in tuned.items()}).table
    np.testing.assert_allclose(of_modules.to_numpy(), of_states.to_numpy(), rtol=1e-6)


def test_temporary_files_of_models_in_memory_go_with_the_models(models, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = compare(*models)
    assert len(list(tmp_path.glob("mergeability-*"))) == 4
    # What is taken from a comparison still reads its weights.
    vectors = found.task_vectors.select(["a", "b"])
    del found
    assert vectors["blocks.0.bias"].shape == (2, 6)
    del vectors
    assert list(tmp_path.glob("mergeability-*")) == []


def test_metrics_are_chosen_by_name_or_given_as_functions(models):
    assert list(compare(*models, metrics=["stable_rank", "spectral_gap"]).table) == [
        "stable_rank",
        "spectral_gap",
    ]
    ones = compare(*models, metrics={"one": lambda profiles: np.ones((len(profiles.tasks),) * 2)}).table
    assert ones["one"].tolist() == [1.0] * 3
    with pytest.raises(UserError, match=r"no metric 'stable_rnk'\. Did you mean 'stable_rank'"):
        compare(*models, metrics=["stable_rnk"])


def test_what_stands_out_is_said(models):
    base, tuned = models
    opposite = {name: base[name] - 3 * (value - base[name]) for name, value in tuned["a"].items()}
    said = "\n".join(compare(base, {"a": tuned["a"], "opposite": opposite, "still": base}).stands_out)
    assert "oppose each other: cosine -1.00" in said
    assert "Equal to the base: still" in said
    twice = compare(base, {"a": tuned["a"], "copy": dict(tuned["a"])}).stands_out
    assert any("perhaps one model twice" in one for one in twice)


def test_a_comparison_is_saved_shown_and_written_as_json(models, tmp_path):
    found = compare(*models)
    assert found.save(tmp_path / "report").name == "report.html"
    assert (tmp_path / "report" / "pairs.csv").is_file()
    record = json.loads(found.to_json())
    assert record["models"] == ["a", "b", "c"]
    cosines = [pair["task_vector_cosine_similarity"] for pair in record["pairs"]]
    assert cosines == found.table["task_vector_cosine_similarity"].tolist()
    assert "stable_rank" in found._repr_html_()
    assert "stable_rank" in repr(found)


def test_left_out_tensors_are_named(models):
    base, tuned = models
    extra = {**tuned, "a": {**tuned["a"], "head.weight": torch.ones(3)}}
    assert any("head.weight" in one for one in compare(base, extra).left_out)


def test_merging_gives_the_mean_of_numpy(models):
    base, tuned = models
    state = merge(base, tuned, method="average").state_dict
    expected = np.mean([flat(one) for one in tuned.values()], axis=0)
    np.testing.assert_allclose(flat(state), expected, atol=1e-6)
    moved = merge(base, tuned, method="ta", alpha=0.25).state_dict
    expected = flat(base) + 0.25 * sum(flat(one) - flat(base) for one in tuned.values())
    np.testing.assert_allclose(flat(moved), expected, atol=1e-6)


def test_a_method_may_be_an_object(models):
    of_object = merge(*models, method=merging.Ties(density=0.1))
    of_name = merge(*models, method="ties", options={"density": 0.1})
    assert repr(of_object) == "Merged(a + b + c, method='Ties', alpha=1.0)"
    for name, value in of_name.state_dict.items():
        assert torch.equal(of_object.state_dict[name], value)


def test_an_option_may_be_an_object_or_a_node(models):
    node = {"_target_": "mergeability.merging.ties.Ties", "density": 0.5}
    found = [
        merge(*models, method="dare", options={"then": then}) for then in (merging.Ties(density=0.5), node)
    ]
    expected = merge(*models, method=merging.Dare(then=merging.Ties(density=0.5)))
    for merged in found:
        assert all(torch.equal(merged.state_dict[name], one) for name, one in expected.state_dict.items())


def test_a_merge_is_written_with_its_card_or_not_at_all(models, tmp_path):
    merged = merge(*models, method="tsv", dtype="bfloat16")
    folder = merged.save(tmp_path / "out")
    written = load_file(folder / "model.safetensors")
    assert {value.dtype for value in written.values()} == {torch.bfloat16}
    assert torch.equal(written["blocks.0.bias"], merged.state_dict["blocks.0.bias"])
    card = json.loads((folder / "card.json").read_text())
    assert sorted(card["parents"]) == ["a", "b", "c"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    with pytest.raises(UserError, match="exists"):
        merged.save(folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file: give a folder"):
        merged.save(tmp_path / "file")
    with pytest.raises(UserError, match="Cannot create"):
        merged.save(tmp_path / "file" / "inside" / "out")
    merge(*models, method="average").save(folder, overwrite=True)
    assert json.loads((folder / "card.json").read_text())["merge"]["method"].endswith("Average")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"method": "tis"}, r"no merge method 'tis'\. Did you mean"),
        ({"method": "ties", "options": {"densty": 0.1}}, r"no option 'densty'\. Did you mean 'density'"),
        ({"method": "ties", "options": {"density": 7}}, "density"),
        *(
            ({"method": "ties", "options": {"density": wrong}}, "option density of ties to be a number, got")
            for wrong in ("x", None, True, [0.1], {"a": 1}, float("nan"))
        ),
        ({"method": "ties", "options": {"agg": False}}, "option agg of ties to be text, got False"),
        ({"method": "dare", "options": {"seed": "x"}}, "option seed of dare to be a whole number"),
        ({"method": "dare", "options": {"then": "ties"}}, "option then of dare to be .* got 'ties'"),
        ({"method": merging.Ties(), "options": {"density": 0.5}}, "only be used with a method given by name"),
        ({"method": "fisher"}, "requires images"),
        ({"method": "slerp"}, "merges exactly 2 models, got 3"),
        ({"method": "ties", "alpha": "tuned"}, "alpha to be a number"),
        ({"method": "ties", "dtype": "int8"}, "Expected dtype"),
    ],
)
def test_a_merge_that_cannot_be_is_one_sentence(models, arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        merge(*models, **arguments)


def test_what_is_no_model_is_refused(models):
    with pytest.raises(UserError, match="Expected a path, a hub id, a state dict or a module, got int"):
        compare(models[0], {"a": models[1]["a"], "b": 3})


def test_an_unknown_architecture_names_the_known_ones():
    with pytest.raises(UserError, match=r"no model 'vit_b_16'\. Did you mean 'vit_b16'"):
        model_called("vit_b_16")


def test_models_that_hardly_changed_stand_out(models):
    base, tuned = models
    still = {name: value * (1 + 3e-7) for name, value in base.items()}
    many = {f"m{number}": tuned["a"] for number in range(7)}
    said = "\n".join(compare(base, {**many, "still": still, "same": base}).stands_out)
    assert "Updates are 0 % (same) to" in said
    assert "Equal to the base: same." in said
    assert "Hardly changed from the base: still." in said


@pytest.mark.parametrize("verb", [compare, merge, predict])
def test_one_model_is_too_few(models, verb):
    base, tuned = models
    with pytest.raises(UserError, match="at least two models"):
        verb(base, {"a": tuned["a"]})


def test_models_of_another_architecture_are_refused(models):
    base, tuned = models
    other = {name: torch.ones(2, 2) for name in base}
    with pytest.raises(UserError, match="shape"):
        compare(base, {"a": tuned["a"], "b": other})


def test_names_come_from_files_folders_and_ids():
    assert list(named(["x/cars.safetensors", "svhn/model.safetensors", "dtd/", "owner/gtsrb", "lora/adapter_model.bin"])) == [
        *("cars", "svhn", "dtd", "gtsrb", "lora"),
    ]  # fmt: skip
    with pytest.raises(UserError, match="Two models have the same name 'cars'"):
        named(["x/cars.safetensors", "y/cars.safetensors"])
    with pytest.raises(UserError, match="Models in memory need names"):
        named([{"weight": torch.ones(1)}])
    with pytest.raises(UserError, match="Expected a list of models or a mapping"):
        named("cars.safetensors")


def test_what_is_no_tensor_in_a_state_dict_is_named(models, caplog):
    base, _ = models
    assert set(open_in_memory({**base, "step": 3}).names) == set(base)
    assert "step" in caplog.text
    with pytest.raises(UserError, match="Expected a state dict with tensors"):
        open_in_memory({"step": 3})


@pytest.fixture(scope="module")
def own():
    return tiny_own_models()


def test_a_prediction_probes_every_method(own, tmp_path):
    base, models, images = own
    classes = {task: ["dark", "light"] for task in models}
    found = predict(
        base, models, images=images, classes=classes, model=tiny_clip(), methods=["average", "ta"]
    )
    assert {one.method for one in found.verdict.forecasts} == {"average", "ta"}
    assert "unlabelled images" in found.verdict.forecasts[0].source
    record = json.loads(found.to_json())
    assert record["recommended"] == found.verdict.recommended
    assert found.save(tmp_path).is_file()
    assert (tmp_path / "verdict.txt").read_text().strip() == str(found.verdict).strip()


def test_without_evidence_a_prediction_says_what_it_needs(own):
    base, models, _ = own
    found = predict(base, models)
    assert found.verdict.recommended == ""
    assert json.loads(found.to_json())["recommended"] is None
    assert any("--images" in one and "images=" in one for one in found.verdict.next_steps)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"images": {"greys": "x"}, "classes": {"greys": ["a", "b"]}}, "There are no images for hues"),
        (
            {"images": {"greys": "x", "hues": "y"}, "classes": {"greys": ["a", "b"]}},
            "neither classes nor a head",
        ),
        (
            {"images": {"greys": "x", "hues": "y", "reds": "z"}},
            "Expected images only for the models .*, got images for reds",
        ),
        ({"classes": {"greys": ["a", "b"]}}, "are only used with images"),
    ],
)
def test_images_for_some_models_only_are_refused(own, given, sentence):
    base, models, _ = own
    with pytest.raises(UserError, match=sentence):
        predict(base, models, **given)


def test_the_defaults_of_the_verbs_are_those_of_an_analysis():
    with initialize_config_dir(str(members.folder("").resolve()), version_base="1.3"):
        cfg = compose(
            "analyze", ["suite=checkpoints", "merge=all", "suite.base=b", "suite.models={a: a, b: b}"]
        )
        probed = compose("analyze", ["suite=models", "suite.models=mine.yaml"])
    suite = defaults.suite_options("checkpoints")
    assert {name: cfg.suite[name] for name in suite} == suite
    assert defaults.suite_options("models") == {
        name: probed.suite[name] for name in defaults.suite_options("models")
    }
    assert instantiate(cfg.profile) == defaults.profile() == ProfileSettings()
    assert set(cfg.metric) == set(mergeability.verbs.comparing.weight_space())
    assert defaults.probed_images() == probed.probe
    assert len(cfg.merge) == len(members.members("merge"))
    for name, options in cfg.merge.items():
        assert instantiate(options) == defaults.method_called(name)


@pytest.mark.parametrize("name", image_models())
def test_every_configured_model_is_recognised_by_its_shapes(name):
    model = model_called(name)
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in model.architecture_only().state_dict().items()}
    # As large as it is, a file of zeros of the smallest type has the same shapes.
    zeros = {
        key: torch.zeros(shape, dtype=torch.uint8)
        for key, shape in shapes.items()
        if key.startswith("visual.")
    }
    found = recognised(open_in_memory(zeros))
    assert found.configuration["vision_cfg"] == model.configuration["vision_cfg"]


def test_a_model_of_texts_is_no_architecture_of_a_prediction():
    assert set(members.files("model")) - set(image_models()) == {"minilm"}
    with pytest.raises(UserError, match=r"'minilm' reads text.*Image models: clip_mini,"):
        model_called("minilm")


def test_another_network_is_not_recognised(models):
    with pytest.raises(UserError, match="not have the tensor shapes of any model in conf/model"):
        recognised(open_in_memory(models[0]))


def test_a_merge_reports_its_progress_tensor_by_tensor(tmp_path):
    base, models = tiny_files()
    merged, seen = merge(base, models, method="average"), []

    def progress(items, description, total):
        for item in items:
            seen.append((item, description, total))
            yield item

    merged.save(tmp_path / "merged", progress=progress)
    names = list(merged.state_dict)
    assert sorted(item for item, _, _ in seen) == sorted(names)
    assert {(description, total) for _, description, total in seen} == {("writing tensors", len(names))}
