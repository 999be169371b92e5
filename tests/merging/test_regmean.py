import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from mergeability.context import Run
from mergeability.data.inputs import Inputs
from mergeability.errors import UserError
from mergeability.merging.regmean import RegMean
from mergeability.profiles.profiles import Profiles
from mergeability.profiles.views import Views
from mergeability.store import Store
from mergeability.task_vectors.vectors import TaskVectors

TASKS = ("b", "a", "c")


class Encoder(nn.Module):
    """A convolution, a Linear layer (outputs × inputs) and a matrix stored inputs × outputs.

    The convolution's last channel is always zero.
    """

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 2, stride=2)
        self.linear = nn.Linear(6, 4)
        self.proj = nn.Parameter(torch.randn(4, 5))

    def forward(self, images):
        return torch.tanh(self.linear(self.features(images))) @ self.proj

    def features(self, images):
        tokens = torch.relu(self.conv(images)).flatten(2).transpose(1, 2)
        tokens = tokens * torch.tensor([1.0, 1, 1, 1, 1, 0])
        return tokens.flatten(0, 1)


def tower():
    from open_clip.transformer import VisionTransformer

    return VisionTransformer(
        image_size=16, patch_size=8, width=16, layers=2, heads=2, mlp_ratio=2.0, output_dim=5
    )


def built(kind):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind()


@pytest.fixture
def make(tmp_path):
    """Make profiles of random models of one base, and their weights in float64."""

    def make(kind, tasks=TASKS, *, store=None, copies=False, count=6, size=16, split_qkv=False, **options):
        generator = torch.Generator().manual_seed(1)
        encoder = built(kind)
        base = encoder.state_dict()
        states, calibration, heads = {}, {}, {}
        for number, task in enumerate(sorted(TASKS)):
            states[task] = {
                name: value + 0.05 * torch.randn(value.shape, generator=generator)
                for name, value in base.items()
            }
            images = torch.randn(count + number, 3, size, size, generator=generator)
            calibration[task] = Inputs({"images": images}, torch.zeros(len(images), dtype=torch.int64))
            heads[task] = torch.randn(4, 5, generator=generator)
        if copies:
            states = dict.fromkeys(states, states["a"])
        for name, state in {"base": base, **states}.items():
            named = {f"visual.{key}": value.clone() for key, value in state.items()}
            # Written once: a file that is open must not change.
            if not (tmp_path / f"{name}.safetensors").exists():
                safetensors.torch.save_file(named, tmp_path / f"{name}.safetensors")
        paths = {task: tmp_path / f"{task}.safetensors" for task in tasks}
        vectors = TaskVectors.load(paths, tmp_path / "base.safetensors", store=store)
        arrays = {
            task: {name: value.double().numpy() for name, value in state.items()}
            for task, state in {"base": base, **states}.items()
        }
        vectors = vectors.with_layout(split_qkv=split_qkv)
        return Profiles(vectors, Views(encoder, heads, calibration), Run(**options)), arrays

    return make


def toy_inputs(profiles, task, state):
    """The inputs of the toy's two layers, by its forward pass written out."""
    encoder = built(Encoder).double()
    encoder.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    with torch.no_grad():
        rows = encoder.features(profiles.views.calibration[task].tensors["images"].double()).numpy()
    return {"linear.weight": rows, "proj": np.tanh(rows @ state["linear.weight"].T + state["linear.bias"])}


def tower_inputs(profiles, task, state):
    """The inputs of the tower's layers, by hooks on modules around them and attention from its definition."""
    encoder = built(tower).double().eval()
    encoder.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    inputs = {}

    def keep(name):
        def hook(_module, _inputs, output):
            inputs[name] = output.numpy()

        return hook

    for number, block in enumerate(encoder.transformer.resblocks):
        name = f"transformer.resblocks.{number}."
        block.ln_1.register_forward_hook(keep(f"{name}attn.in_proj_weight"))
        block.ln_2.register_forward_hook(keep(f"{name}mlp.c_fc.weight"))
        block.mlp.gelu.register_forward_hook(keep(f"{name}mlp.c_proj.weight"))
    encoder.ln_post.register_forward_hook(keep("proj"))
    with torch.no_grad():
        encoder(profiles.views.calibration[task].tensors["images"].double())
    inputs["proj"] = inputs["proj"][:, 0]
    for number in range(2):
        name = f"transformer.resblocks.{number}.attn."
        projected = (
            inputs[f"{name}in_proj_weight"] @ state[f"{name}in_proj_weight"].T + state[f"{name}in_proj_bias"]
        )
        heads = []
        for head in range(2):
            q, k, v = (projected[..., 16 * part + 8 * head : 16 * part + 8 * head + 8] for part in range(3))
            logits = np.exp(q @ k.swapaxes(-1, -2) / np.sqrt(8))
            heads.append(logits / logits.sum(-1, keepdims=True) @ v)
        inputs[f"{name}out_proj.weight"] = np.concatenate(heads, -1)
    return {name: rows.reshape(-1, rows.shape[-1]) for name, rows in inputs.items()}


def solved(rows, weights, scale):
    """(Σ G)⁻¹ Σ G W with weights inputs × outputs, the G's off-diagonal entries times `scale`."""
    grams = [one.T @ one for one in rows]
    grams = [scale * gram + (1 - scale) * np.diag(np.diag(gram)) for gram in grams]
    return np.linalg.solve(
        sum(grams), sum(gram @ weight for gram, weight in zip(grams, weights, strict=True))
    )


def expected_of(inputs, arrays, scale, name):
    """The merged delta of one weight, in the layout it is stored in."""
    rows = [inputs[task][name] for task in TASKS]
    flip = (lambda x: x) if name == "proj" else np.transpose
    alive = np.diag(sum(one.T @ one for one in rows)) > 0
    merged = np.mean([flip(arrays[task][name]) for task in TASKS], axis=0)
    merged[alive] = solved(
        [one[:, alive] for one in rows], [flip(arrays[task][name])[alive] for task in TASKS], scale
    )
    return flip(merged) - arrays["base"][name]


@pytest.mark.parametrize(
    ("kind", "inputs_of", "layers"), [(Encoder, toy_inputs, 2), (tower, tower_inputs, 9)]
)
@pytest.mark.parametrize("scale", [0.9, 0.3, 0.0])
def test_every_linear_layer_is_the_solution_of_its_normal_equations(make, kind, inputs_of, layers, scale):
    profiles, arrays = make(kind)
    merged = RegMean(scale=scale)(profiles)
    inputs = {task: inputs_of(profiles, task, arrays[task]) for task in TASKS}
    assert len(inputs["a"]) == layers
    assert merged.keys() == {f"visual.{name}" for name in arrays["base"]}
    for name, base in arrays["base"].items():
        average = np.mean([arrays[task][name] - base for task in TASKS], axis=0)
        expected = expected_of(inputs, arrays, scale, name) if name in inputs["a"] else average
        found = merged[f"visual.{name}"].numpy()
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-6, err_msg=name)
        if name in inputs["a"]:
            assert np.abs(found - average).max() > 1e-3


@pytest.mark.parametrize(("kind", "inputs_of"), [(Encoder, toy_inputs), (tower, tower_inputs)])
def test_without_shrinking_the_outputs_on_the_models_own_inputs_change_least(make, kind, inputs_of):
    profiles, arrays = make(kind, count=30)
    merged = RegMean(scale=1)(profiles)
    for name in inputs_of(profiles, "a", arrays["a"]):
        flip = (lambda x: x) if name == "proj" else np.transpose
        rows = [inputs_of(profiles, task, arrays[task])[name] for task in TASKS]
        targets = [one @ flip(arrays[task][name]) for one, task in zip(rows, TASKS, strict=True)]
        best = np.linalg.lstsq(np.concatenate(rows), np.concatenate(targets), rcond=None)[0]

        def loss(weight, rows=rows, targets=targets):
            return sum(
                np.sum((one @ weight - target) ** 2) for one, target in zip(rows, targets, strict=True)
            )

        found = flip(arrays["base"][name] + merged[f"visual.{name}"].double().numpy())
        average = np.mean([flip(arrays[task][name]) for task in TASKS], axis=0)
        assert loss(found) <= loss(best) * (1 + 1e-4)
        assert loss(found) < 0.999 * loss(average)


def test_with_fewer_rows_than_inputs_the_solution_nearest_to_the_average_is_taken(make):
    profiles, arrays = make(Encoder, count=1, size=2)
    merged = RegMean(scale=1)(profiles.select(["a", "b"]))
    rows = [toy_inputs(profiles, task, arrays[task])["linear.weight"] for task in "ab"]
    together = np.concatenate(rows)
    assert np.linalg.matrix_rank(together) < 5
    weights = [arrays[task]["linear.weight"].T for task in "ab"]
    found = arrays["base"]["linear.weight"].T + merged["visual.linear.weight"].double().numpy().T
    change = sum(one.T @ one @ (found - weight) for one, weight in zip(rows, weights, strict=True))
    np.testing.assert_allclose(change, 0, atol=1e-6)
    # Nearest in units of each input's length: the least change of the rescaled weights.
    lengths = np.linalg.norm(together, axis=0)
    alive = lengths > 0
    rescaled = together[:, alive] / lengths[alive]
    unseen = np.eye(alive.sum()) - np.linalg.pinv(rescaled, rcond=1e-6) @ rescaled
    away = found - sum(weights) / 2
    np.testing.assert_allclose(unseen @ (lengths[:, None] * away)[alive], 0, atol=1e-6)
    np.testing.assert_allclose(away[~alive], 0, atol=1e-8)
    assert np.abs(away).max() > 1e-3


@pytest.mark.parametrize("scale", [0.9, 1.0])
def test_an_input_that_is_never_active_is_averaged(make, scale):
    profiles, arrays = make(Encoder)
    merged = RegMean(scale=scale)(profiles)["visual.linear.weight"]
    average = np.mean(
        [arrays[task]["linear.weight"] - arrays["base"]["linear.weight"] for task in TASKS], axis=0
    )
    assert torch.isfinite(merged).all()
    np.testing.assert_allclose(merged[:, 5], average[:, 5], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("kind", [Encoder, tower])
@pytest.mark.parametrize("scale", [0.9, 1.0])
def test_copies_of_a_model_give_it_back_whatever_their_data(make, kind, scale):
    profiles, arrays = make(kind, copies=True)
    for name, value in RegMean(scale=scale)(profiles).items():
        own = name.removeprefix("visual.")
        np.testing.assert_allclose(value, arrays["a"][own] - arrays["base"][own], rtol=1e-4, atol=1e-7)


def test_models_equal_to_the_base_give_the_base(make, tmp_path):
    profiles, _ = make(Encoder)
    paths = {task: tmp_path / f"{task}.safetensors" for task in "ab"}
    for path in paths.values():
        path.write_bytes((tmp_path / "base.safetensors").read_bytes())
    same = Profiles(TaskVectors.load(paths, tmp_path / "base.safetensors"), profiles.views)
    assert not any(value.any() for value in RegMean()(same).values())


@pytest.mark.parametrize("kind", [Encoder, tower])
def test_the_order_of_the_tasks_and_other_models_are_irrelevant(make, kind):
    all_three, _ = make(kind)
    first, second = RegMean()(all_three), RegMean()(make(kind, tasks=("c", "a", "b"))[0])
    assert all(torch.equal(first[name], second[name]) for name in first)
    alone = RegMean()(make(kind, tasks=("a", "c"))[0])
    selected = RegMean()(all_three.select(["c", "a"]))
    assert all(torch.equal(alone[name], selected[name]) for name in alone)
    assert any(not torch.equal(alone[name], first[name]) for name in alone)


def test_each_model_is_looked_at_once_for_all_merges(make, tmp_path):
    store = Store(tmp_path / "store")
    profiles, _ = make(tower, store=store)
    first = RegMean()(profiles)
    assert (store.computed["linear_inputs"], store.computed["linear_parts"]) == (3, 1)
    again = Store(tmp_path / "store")
    second = RegMean()(make(tower, store=again)[0])
    # Another scale is arithmetic on the same inputs.
    RegMean(scale=0.5)(profiles.select(["a", "b"]))
    assert (store.computed["linear_inputs"], store.computed["linear_parts"]) == (3, 1)
    assert not {"linear_inputs", "linear_parts"} & again.computed.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_evidence_larger_than_the_memory_budget_goes_to_a_folder(make):
    plain, _ = make(tower)
    profiles, _ = make(tower, memory_budget=1e-9)
    expected, found = RegMean()(plain), RegMean()(profiles)
    assert not profiles.task_vectors.store.computed["linear_inputs"]
    # One image at a time is another order of the sums.
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)
    profiles.subject.spilled.cleanup()


def test_another_arrangement_of_the_parameters_gives_the_same_weights(make):
    plain, _ = make(tower)
    cut = Profiles(plain.task_vectors.with_layout(split_qkv=True, matricize="conv"), plain.views)
    assert "visual.transformer.resblocks.0.attn.q_proj_weight" in cut.task_vectors.names
    assert cut.task_vectors.shapes["visual.conv1.weight"] == (16, 192)
    expected, found = RegMean()(plain), cut.task_vectors.assembled(RegMean()(cut))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-8)


class Pooled(nn.Module):
    """Attention of some tokens to others: the queries' inputs are not those of keys and values."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Parameter(torch.randn(3, 12))
        self.attention = nn.MultiheadAttention(12, 2, batch_first=True)

    def forward(self, images):
        context = images.flatten(2)[..., :12]
        tokens = self.tokens.expand(len(images), -1, -1)
        return self.attention(tokens, context, context, need_weights=False)[0].mean(1)[:, :5]


@pytest.mark.parametrize("split_qkv", [False, True])
def test_outputs_of_one_weight_are_merged_by_their_own_inputs(make, split_qkv):
    profiles, arrays = make(Pooled, split_qkv=split_qkv)
    merged = profiles.task_vectors.assembled(RegMean()(profiles))["visual.attention.in_proj_weight"].numpy()
    name = "attention.in_proj_weight"
    context = {
        task: profiles.views.calibration[task].tensors["images"].flatten(2)[..., :12].double().numpy()
        for task in TASKS
    }
    tokens = {task: np.tile(arrays[task]["tokens"], (len(context[task]), 1, 1)) for task in TASKS}
    for outputs, inputs in ((slice(0, 12), tokens), (slice(12, 36), context)):
        rows = [inputs[task].reshape(-1, 12) for task in TASKS]
        expected = solved(rows, [arrays[task][name][outputs].T for task in TASKS], 0.9).T
        np.testing.assert_allclose(
            merged[outputs], expected - arrays["base"][name][outputs], rtol=1e-4, atol=1e-6
        )


def test_models_without_data_and_wrong_options_are_refused(make):
    profiles, _ = make(Encoder)
    with pytest.raises(
        UserError, match=r"got task vectors alone\. Provide .* needs no data: average, ta, ties"
    ):
        RegMean()(profiles.task_vectors)
    with pytest.raises(UserError, match="got Profiles without views"):
        RegMean()(Profiles(profiles.task_vectors))
    for scale in (1.5, -0.1, float("nan"), True):
        with pytest.raises(UserError, match=r"scale to be in \[0, 1\]"):
            RegMean(scale=scale)
    with pytest.raises(UserError, match="alpha"):
        RegMean(alpha="published")
    with pytest.raises(UserError, match="at least two"):
        RegMean()(profiles.select(["a"]))
    assert RegMean.needs_data


def test_the_model_whose_inputs_are_not_finite_is_named(make):
    profiles, _ = make(Encoder)
    samples = profiles.views.calibration["b"]
    nowhere = torch.full_like(samples.tensors["images"], torch.nan)
    profiles.views.calibration["b"] = Inputs({"images": nowhere}, samples.labels)
    with pytest.raises(UserError, match=r"model of 'b'.*are not finite"):
        RegMean()(profiles)
