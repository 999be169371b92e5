"""`suite=checkpoints` on what people have: folders of transformers, heads, adapters; what is left out is said."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
METRIC = "metric=task_vector_cosine_similarity"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base, two classifiers with heads of different sizes, and two adapters, as transformers and PEFT save them."""
    root = tmp_path_factory.mktemp("models")
    config = transformers.ViTConfig(**SIZES, image_size=16, patch_size=8)
    torch.manual_seed(0)
    base = transformers.ViTModel(config, add_pooling_layer=False)
    base.save_pretrained(root / "base", max_shard_size="4KB")
    weights = {}
    for path in (root / "base").glob("*.safetensors"):
        weights |= load_file(path)
    for seed, name in enumerate("ab", start=1):
        torch.manual_seed(seed)
        tuned = {f"vit.{key}": value + 0.01 * torch.randn(value.shape) for key, value in weights.items()}
        head = {"classifier.weight": torch.randn(2 + seed, 16), "classifier.bias": torch.randn(2 + seed)}
        (root / name).mkdir()
        save_file(tuned | head, root / name / "model.safetensors")
        folder = root / f"adapter_{name}"
        folder.mkdir()
        key = next(key for key in weights if key.endswith("query.weight")).removesuffix(".weight")
        factors = {
            f"base_model.model.vit.{key}.lora_{x}.weight": 0.1 * torch.randn(shape)
            for x, shape in (("A", (2, 16)), ("B", (16, 2)))
        }
        save_file(factors, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 4}')
    return root


def analyse(command, tmp_path, base, models, *arguments):
    given = ", ".join(f'{name}: "{path}"' for name, path in models.items())
    return command(
        "analyze", "suite=checkpoints", f"suite.base={base}", f"suite.models={{{given}}}", METRIC, "logger=csv",
        f"paths.root={tmp_path}/outputs", f"hydra.run.dir={tmp_path}/run", *arguments,
    )  # fmt: skip


def test_classifiers_are_merged_into_a_folder_that_transformers_opens(command, tmp_path, folders):
    models = {name: folders / name for name in "ab"}
    ended = analyse(command, tmp_path, folders / "base", models, "merge=average", "save=true")
    assert ended.code == 0, ended.output
    assert (
        "Left out: heads, absent from some models or of other shapes, of a, b: classifier.bias, classifier.weight"
        in ended.output.replace("\n", " ")
    )
    assert "Merged models: " in ended.output
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["left_out"][0]["names"] == ["classifier.bias", "classifier.weight"]
    assert "classifier.weight" in (tmp_path / "run/report.html").read_text()
    folder = tmp_path / "run/merged/average/a+b"
    card = json.loads((folder / "card.json").read_text())
    assert "classifier.weight" in card["left_out"][0]
    assert card["sha256"] in (folder / "README.md").read_text()
    model, report = transformers.ViTModel.from_pretrained(
        folder, add_pooling_layer=False, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.config.hidden_size == 16


def test_adapters_are_models_and_no_base(command, tmp_path, folders):
    models = {name: folders / f"adapter_{name}" for name in "ab"}
    ended = analyse(command, tmp_path, folders / "base", models)
    assert ended.code == 0, ended.output
    ended = analyse(command, tmp_path, folders / "adapter_a", models)
    assert ended.code == 1
    assert (
        "is a LoRA adapter. Adapters are accepted only as models that are compared or merged" in ended.output
    )
    assert "Traceback" not in ended.output


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("suite.exclude=nothing_like_it", "No tensor name matches exclude='nothing_like_it'"),
        ("suite.towers=text", "Expected suite.towers to be visual or both, got 'text'"),
        ("suite.include=[[a]]", "Expected suite.include to be text, a list of text or null"),
        ("suite.exclude='['", "not a valid regular expression"),
    ],
)
def test_a_wrong_choice_is_refused_in_a_sentence(command, tmp_path, folders, option, message):
    ended = analyse(command, tmp_path, folders / "base", {name: folders / name for name in "ab"}, option)
    assert ended.code == 1
    assert message in ended.output.replace("\n", " "), ended.output
    assert "Traceback" not in ended.output
