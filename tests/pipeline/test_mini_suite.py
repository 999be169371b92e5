"""The mini suite keeps its promises: the whole pipeline at its real, small size (minutes)."""

import pandas as pd
import pytest

MINI = "digits,letters,shapes,colours,dots,orientation,frequency,textures,arrows,positions"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_mini_suite_is_worth_analysing(command, tmp_path):
    where = (f"paths.root={tmp_path}", "logger=csv")
    assert command("train", "experiment=pretrain_mini", "progress=null", *where).code == 0
    assert command("train", "-m", "model=clip_mini", f"task={MINI}", "progress=null", *where).code == 0
    run = tmp_path / "run"
    ended = command("analyze", "suite=mini", "model=clip_mini", "merge=paper", f"hydra.run.dir={run}", *where)
    assert ended.code == 0, ended.output
    models, pairs = pd.read_csv(run / "models.csv"), pd.read_csv(run / "pairs.csv")
    assert len(models) >= 10
    assert len(pairs) == len(models) * (len(models) - 1) // 2
    assert (models["finetuned_accuracy"] > models["pixel_accuracy"]).all()
    gain = models["finetuned_accuracy"] - models["base_accuracy"]
    assert (gain >= 0.15).mean() > 0.5, "most tasks gain 15 points over zero-shot"
    # Three standard errors of an accuracy on 400 images.
    clearly = 3 * (models["chance"] * (1 - models["chance"]) / 400) ** 0.5
    assert (models["base_accuracy"] > models["chance"] + clearly).mean() > 0.5
    average = pairs["norm_acc_average"]
    assert average.max() - average.min() >= 0.10
    assert average.min() < 0.9
    assert 0.5 < average.mean() < 0.97, "neither all broken nor all perfect"
