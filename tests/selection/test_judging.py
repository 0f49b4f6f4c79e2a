"""Which metric chooses and which is reported, on records of which the right choice is known."""

from dataclasses import replace

import pandas as pd
import pytest

from domainbed.errors import UserError
from domainbed.metrics import selecting_metric
from domainbed.runs.records import Records
from domainbed.selection import SELECTION_METHODS
from domainbed.selection.judging import judged, judged_alike

# By hparams seed and step: rmse and mae on the out-splits of the three domains, of which 0 is the
# test domain, and on its in-split. The better value is the lower one.
RUNS = {
    0: {0: ([9.0, 4.0, 6.0], [1, 1, 1], 7.0, 0.7), 10: ([2.0, 2.0, 7.5], [1, 1, 1], 6.0, 0.6)},
    1: {0: ([9.0, 5.0, 5.5], [1, 2, 1], 5.0, 0.9), 10: ([1.0, 5.0, 5.5], [1, 2, 1], 4.0, 0.5)},
}
# Of the runs on pairs: rmse on the in-split of the other test domain, by step.
PAIRS = {0: {1: [8, 5], 2: [8, 3]}, 1: {1: [2, 9], 2: [4, 9]}}


def records(dataset="Houses", labels="regression", **args):
    runs, values = [], []

    def add(test_envs, hparams_seed, measured):
        number, args_of_run = len(runs), {"labels": labels, **args}
        run = {"dataset": dataset, "algorithm": "ERM", "test_envs": test_envs, "trial_seed": 0}
        run |= {"hparams_seed": hparams_seed, "num_domains": 3, "num_records": 2}
        runs.append({**run, "args": args_of_run, "folder": f"{dataset}/{number}"})
        values.extend((number, *row) for row in measured)

    for seed, steps in RUNS.items():
        measured = []
        for step, (rmse, mae, test, test_mae) in steps.items():
            measured += [(step, d, "out", "rmse", v) for d, v in enumerate(rmse)]
            measured += [(step, d, "out", "mae", float(v)) for d, v in enumerate(mae)]
            measured += [(step, 0, "in", "rmse", test), (step, 0, "in", "mae", test_mae)]
            measured += [(step, -1, "", "loss", 3.0)]
        add((0,), seed, measured)
        for other, found in PAIRS[seed].items():
            both = zip((0, 10), found, strict=True)
            rows = [(step, d, "in", "rmse", float(v)) for step, v in both for d in (0, other)]
            add((0, other), seed, rows)
    columns = ["run", "step", "domain", "split", "metric", "value"]
    return Records(pd.DataFrame(runs), pd.DataFrame(values, columns=columns))


def chosen(found, name):
    (row,) = SELECTION_METHODS[name].select(found).to_dict("records")
    return row["hparams_seed"], row["step"], row["val"], row["test"]


def test_each_method_takes_the_lowest_error():
    found = judged_alike(records())
    assert (found.metric, found.selection_metric, found.lower_is_better) == ("rmse", "rmse", True)
    assert chosen(found, "training-domain") == (0, 10, 4.75, 6.0)  # (2 + 7.5) / 2
    assert chosen(found, "leave-one-domain-out") == (1, 0, 3.0, 5.0)  # (2 + 4) / 2
    assert chosen(found, "oracle") == (1, 10, 1.0, 4.0)  # at the last step
    assert chosen(found, "worst-domain") == (1, 0, 5.5, 5.0)  # 5.5, the first of equal steps


def test_one_metric_chooses_and_another_is_reported():
    found = judged_alike(records(), metric="mae")
    assert (found.metric, found.selection_metric) == ("mae", "rmse")
    assert chosen(found, "training-domain") == (0, 10, 4.75, 0.6)
    assert chosen(found, "oracle") == (1, 10, 1.0, 0.5)
    found = judged_alike(records(), metric="rmse", selection_metric="mae")
    assert chosen(found, "training-domain") == (0, 0, 1.0, 7.0)
    assert chosen(judged_alike(records(), selection_metric="mae"), "oracle") == (1, 10, 1.0, 0.5)


def test_runs_say_what_chooses():
    found = judged_alike(records(selection_metric="mae"))
    assert (found.metric, found.selection_metric) == ("mae", "mae")


def test_worst_group():
    found = records()
    worst = found.values[found.values["metric"] == "rmse"].assign(metric="rmse_worst_group")
    swapped = worst["value"].where(worst["split"] != "out", 10 - worst["value"])
    values = pd.concat([found.values, worst.assign(value=swapped)], ignore_index=True)
    found = judged_alike(replace(found, values=values))
    assert chosen(found, "worst-group") == (1, 0, 4.75, 5.0)  # (5 + 4.5) / 2
    by_hand = judged_alike(found, "rmse", "rmse_worst_group")
    assert chosen(by_hand, "worst-group") == chosen(by_hand, "training-domain")
    with pytest.raises(UserError, match="rmse_worst_group, which no run recorded"):
        SELECTION_METHODS["worst-group"].select(judged_alike(records()))


def both():
    """Houses, by rmse, and Pets of classes with the same numbers as accuracies."""
    houses, pets = records(), records("Pets", "classes")
    offset = len(houses.runs)
    values = pets.values.assign(
        run=pets.values["run"] + offset,
        metric=pets.values["metric"].replace({"rmse": "accuracy"}),
    )
    runs = pd.concat([houses.runs, pets.runs], ignore_index=True)
    return Records(runs, pd.concat([houses.values, values], ignore_index=True))


def test_each_dataset_by_its_own_labels():
    houses, pets = judged(both())
    assert set(houses.runs["dataset"]) == {"Houses"}
    assert (pets.metric, pets.lower_is_better) == ("accuracy", False)
    assert chosen(houses, "oracle") == (1, 10, 1.0, 4.0)
    assert chosen(pets, "oracle") == (0, 10, 2.0, 6.0)
    (by_mae,) = judged(both(), selection_metric="mae")
    assert set(by_mae.runs["dataset"]) == {"Houses", "Pets"}
    with pytest.raises(UserError, match="Houses by rmse; Pets by accuracy"):
        judged_alike(both())


def test_what_was_not_recorded():
    with pytest.raises(
        UserError, match=r"no run of Houses recorded r2, but mae, rmse: .*--metrics"
    ):
        judged(records(), metric="r2")
    with pytest.raises(UserError, match="train with --metrics mae_by_group, or"):
        judged(records(), metric="mae_worst_group")
    with pytest.raises(UserError, match="no run of Pets recorded rmse, but accuracy, mae"):
        judged(both(), "mae", "rmse")
    with pytest.raises(UserError, match="no run of Houses recorded loss"):  # that of training
        judged(records(), metric="loss")
    with pytest.raises(UserError, match=r"unknown metric 'rsme'.*rmse"):
        judged(records(), metric="rsme")


def test_runs_that_lack_a_metric_are_left_out(caplog):
    found = records()
    of_last = found.values["run"].isin(found.runs.index[found.runs["hparams_seed"] == 1])
    values = found.values[~(of_last & (found.values["metric"] == "rmse"))]
    (left,) = judged(replace(found, values=values))
    assert set(left.runs["hparams_seed"]) == {0}
    assert "3 of 6 runs did not record rmse and are left out, such as Houses/3" in caplog.text


def test_several_metrics_for_the_runs_of_a_dataset():
    found = records()

    def with_args(**of_first):
        args = [{**a, **of_first} if i == 0 else a for i, a in enumerate(found.runs["args"])]
        return replace(found, runs=found.runs.assign(args=args))

    (told,) = judged(with_args(selection_metric="mae"))
    assert told.selection_metric == "mae"  # the others were told nothing
    with pytest.raises(
        UserError, match="Houses are chosen by accuracy and by rmse: give one --sel"
    ):
        judged(with_args(labels="classes"))


def test_what_selects_has_its_name_in_records():
    assert selecting_metric(None, "regression", ("rmse",)) == "rmse"
    asked = "torchmetrics:CohenKappa"
    assert selecting_metric(asked, "classes", (asked,)) == "torchmetrics_CohenKappa"
    assert selecting_metric("f1_worst_group", "classes", ("f1_by_group",)) == "f1_worst_group"
    with pytest.raises(UserError, match="'f1', and the metrics accuracy are recorded as accuracy"):
        selecting_metric("f1", "classes", ("accuracy",))


def test_worst_class():
    """The same choice, where the runs recorded the metric by class."""
    found = records()
    worst = found.values[found.values["metric"] == "rmse"].assign(metric="rmse_worst_class")
    values = pd.concat([found.values, worst], ignore_index=True)
    found = judged_alike(replace(found, values=values))
    assert chosen(found, "worst-class") == chosen(found, "training-domain")
    with pytest.raises(UserError, match=r"rmse_worst_class, which no run .* rmse rmse_by_class"):
        SELECTION_METHODS["worst-class"].select(judged_alike(records()))
