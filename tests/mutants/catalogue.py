"""The mutants: three or more for each room, each of a kind that changes a number or loses a result."""

# ruff: noqa: E501

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """One change that tests must notice.

    Attributes:
        file: below `domainbed/`.
        name: what it breaks.
        before, after: the text, which is there once, and what takes its place.
        tests: the files, or tests, that are there to notice.
    """

    file: str
    name: str
    before: str
    after: str
    tests: str


_PENALTIES = "tests/algorithms/test_penalties.py tests/algorithms/test_distances.py"
_DRAWS = "tests/test_hparams.py tests/test_spec.py"
_SPLITS = "tests/training/test_splits.py tests/training/test_minibatches.py"
_SELECTION = "tests/selection"
_TABLES = "tests/reporting/test_tables.py tests/reporting/test_records.py"
_STATISTICS = "tests/reporting/test_statistics.py"
_OWNERSHIP = "tests/runs/test_ownership.py"
_RESUME = "tests/training/test_resume.py tests/training/test_trainer.py"
_AVERAGES = "tests/training/test_averages.py"
_EVALUATION = "tests/training/test_evaluation.py"
_LABELS = "tests/test_label_types.py"
_STAGES = "tests/training/test_stages.py"
_TREES = "tests/download/test_trees_download.py tests/download/test_copies.py"

MUTANTS = (
    # algorithms
    Mutant(
        *("algorithms/coral.py", "the sum over pairs instead of the mean"),
        *(".mean() if distances", ".sum() if distances", _PENALTIES),
    ),
    Mutant(
        *("algorithms/group_dro.py", "the weights before the update"),
        'self.q = reweighted(self.q, risks.detach(), self.hparams["groupdro_eta"])\n'
        "        return reduce(self.q * risks), {}",
        'q, self.q = self.q, reweighted(self.q, risks.detach(), self.hparams["groupdro_eta"])\n'
        "        return reduce(q * risks), {}",
        _PENALTIES,
    ),
    Mutant(
        *("algorithms/vrex.py", "the sum of squared deviations instead of their mean"),
        *("(risks - risks.mean()).square().mean()", "(risks - risks.mean()).square().sum()"),
        _PENALTIES,
    ),
    Mutant(
        *("algorithms/irm.py", "both halves the same"),
        *("for i in (0, 1))", "for i in (0, 0))"),
        _PENALTIES,
    ),
    Mutant(
        *("algorithms/mixup.py", "the last domain paired with itself"),
        *("[*order[1:], order[0]]", "[*order[1:], order[-1]]", "tests/algorithms/test_mixing.py"),
    ),
    # gradients
    Mutant(
        *("gradients/methods.py", "a term of the variance lost"),
        *("            variance.sub_((d_c.T @ (x_c / n)).square_())\n", ""),
        "tests/gradients/test_gradients.py tests/gradients/test_methods.py",
    ),
    Mutant(
        *("gradients/methods.py", "the bias's variance not centred"),
        *("row[weights:] = d_c.square().mean(dim=0)", "row[weights:] = d.square().mean(dim=0)"),
        "tests/gradients/test_gradients.py tests/gradients/test_methods.py",
    ),
    Mutant(
        *("gradients/methods.py", "means by the size of the batch of all domains"),
        *("weight = (d.T @ x / len(x)).flatten()", "weight = (d.T @ x / len(a)).flatten()"),
        "tests/gradients/test_gradients.py tests/gradients/test_methods.py",
    ),
    # core: seeds and files
    Mutant(
        *("core/seeding.py", "draws that do not depend on the trial"),
        "seed_hash(hparams_seed, 0 if shared_draws else trial_seed)",
        *("seed_hash(hparams_seed, 0)", _DRAWS),
    ),
    Mutant(
        *("core/seeding.py", "all domains cut alike"),
        *("return seed_hash(trial_seed, domain)", "return seed_hash(trial_seed, 0)"),
        "tests/core/test_seeding.py tests/training/test_splits.py",
    ),
    Mutant(
        *("training/sampling.py", "the same minibatches in each block of steps"),
        'seed_hash(self._seed, "minibatch", self.domain, number)',
        'seed_hash(self._seed, "minibatch", self.domain, 0)',
        "tests/training/test_minibatches.py",
    ),
    Mutant(
        *("core/files.py", "no look for a successor before a file is replaced"),
        "            check_guard(file.parent)\n            aside.replace(file)",
        *("            aside.replace(file)", f"tests/core/test_files.py {_OWNERSHIP}"),
    ),
    Mutant(
        *("core/files.py", "infinities written as such"),
        *("not math.isfinite(value) else value", "math.isnan(value) else value"),
        "tests/core/test_files.py tests/training/test_trainer.py",
    ),
    # metrics
    Mutant(
        *("metrics/ready.py", "logits that are not finite count as predictions"),
        *("return right & finite if", "return right if", _EVALUATION),
    ),
    Mutant(
        *("metrics/labels.py", "a single logit decided at one half"),
        *("(outputs > 0).long()", "(outputs > 0.5).long()", _EVALUATION),
    ),
    Mutant(
        *("metrics/labels.py", "labels in the precision of the outputs"),
        *("outputs.to(torch.promote_types(outputs.dtype, torch.float32))", "outputs", _LABELS),
    ),
    Mutant(
        *("algorithms/irm.py", "the derivative of another loss as a constant"),
        *("[scale], create_graph=True)[0]", "[scale], create_graph=True)[0].detach()", _LABELS),
    ),
    Mutant(
        *("algorithms/erm.py", "own forward passes taken to know all labels"),
        *('{"update", "objective", "forward_pass"}', '{"update", "objective"}', _LABELS),
    ),
    Mutant(
        *("algorithms/fishr.py", "gradients of the cross-entropy whatever is learned"),
        *("                forward_pass.label_type.losses,\n", "", _LABELS),
    ),
    Mutant(
        *("metrics/ready.py", "the mean of the losses instead of each"),
        "return labels.losses(outputs.float(), targets)",
        "return labels.risk(outputs.float(), targets).expand(len(targets))",
        f"{_EVALUATION} tests/training/test_recorded_splits.py",
    ),
    Mutant(
        *("metrics/accumulators.py", "the worst group is the lowest, also of an error"),
        *("worst = lowest if self._metric.higher_is_better else highest", "worst = lowest"),
        "tests/metrics/test_named_metrics.py",
    ),
    Mutant(
        *("metrics/accumulators.py", "outputs that are no number are measured"),
        *("if not outputs.isfinite().all():", "if not outputs.numel():"),
        "tests/metrics/test_ready_metrics.py",
    ),
    Mutant(
        *("metrics/whole_split.py", "AUROC of a class that all samples have"),
        *('| (name != "auroc"))', '| (name != "f1"))', "tests/metrics/test_ready_metrics.py"),
    ),
    Mutant(
        *("training/evaluation.py", "selects by the highest error"),
        "1 if describe_metric(metric).higher_is_better else -1",
        "1 if describe_metric(metric).higher_is_better else 1",
        "tests/training/test_recorded_splits.py",
    ),
    # minibatches
    Mutant(
        *("core/minibatch.py", "sequences padded at their beginning"),
        *("for n in (0, size)]", "for n in (size, 0)]", "tests/core/test_minibatch.py"),
    ),
    Mutant(
        *("datasets/domain.py", "texts of extras as in the domain, and not as drawn"),
        *(
            "[each[index] for index in indices.tolist()]",
            "list(each)[: len(indices)]",
            "tests/datasets/test_domain.py",
        ),
    ),
    Mutant(
        *("training/shared_passes.py", "batches that only a whole batch can collate read in parts"),
        *(
            " or domain.collate:",
            ":",
            "tests/training/test_ranks.py::test_only_batches_of_single_tensors_are_read_in_parts",
        ),
    ),
    # datasets
    Mutant(
        *("datasets/small_images.py", "colours that follow the digit, not the noisy label"),
        *(
            "colors = self._flipped(labels, noise)",
            "colors = self._flipped(digits[i::n] < 5, noise)",
        ),
        "tests/datasets/test_digits.py",
    ),
    Mutant(
        *("datasets/small_images.py", "the other channel kept"),
        *("torch.stack([~colors, colors], dim=1)", "torch.stack([colors, ~colors], dim=1)"),
        "tests/datasets/test_digits.py",
    ),
    Mutant(
        *("datasets/small_images.py", "images rotated the other way"),
        *("image.rotate(angle, resampling)", "image.rotate(-angle, resampling)"),
        "tests/datasets/test_digits.py",
    ),
    # training: splits, minibatches
    Mutant(
        *("training/sampling.py", "validation images trained on"),
        "return order[:holdout].tolist(), order[holdout:].tolist()",
        "return order[:holdout].tolist(), order.tolist()",
        _SPLITS,
    ),
    Mutant(
        *("training/sampling.py", "the share of the out-split rounded up"),
        *("holdout = int(n * holdout_fraction)", "holdout = math.ceil(n * holdout_fraction)"),
        _SPLITS,
    ),
    Mutant(
        *("training/sampling.py", "unlabelled images that stay in the in-split"),
        "split = Split(split.out, inside, unlabeled)",
        "split = Split(split.out, split.inside, unlabeled)",
        f"{_SPLITS} {_EVALUATION}",
    ),
    Mutant(
        *("training/sampling.py", "classes that are balanced by their frequency"),
        "1 / labels.bincount()[labels].double()",
        "labels.bincount()[labels].double()",
        _SPLITS,
    ),
    # training: evaluation
    Mutant(
        *("training/evaluation.py", "the mean of the batches' means"),
        *("each / len(split.indices)", "each / (len(split.indices) + 1)", _EVALUATION),
    ),
    Mutant(
        *("training/evaluation.py", "the algorithm left in evaluation mode"),
        *(
            "            algorithm.train()\n        for value in found",
            "            pass\n        for value in found",
        ),
        f"{_EVALUATION} {_RESUME}",
    ),
    Mutant(
        *("training/evaluation.py", "equal validation read again"),
        "is_best = best is None or mean > best",
        "is_best = best is None or mean >= best",
        "tests/training/test_recorded_splits.py",
    ),
    # training: checkpoints, averages, the loop
    Mutant(
        *("training/checkpoint.py", "the digest not checked"),
        '    if title.partition(b"; ")[0] != _title_of(payload):',
        *('    if not title.startswith(b"domainbed checkpoint"):', _RESUME),
    ),
    Mutant(
        *("training/checkpoint.py", "NumPy's source forgotten"),
        *('    np.random.set_state(state["numpy"])\n', "", _RESUME),
    ),
    Mutant(
        *("training/checkpoint.py", "another run's checkpoint taken"),
        *('if contents["run_id"] != run_id:', "if not run_id:", _RESUME),
    ),
    Mutant(
        *("training/averages.py", "the moving average that forgets what it should keep"),
        "torch._foreach_lerp_(self.average, weights, self.rate(self.updates))",
        *("torch._foreach_lerp_(self.average, weights, 1 - self.rate(self.updates))", _AVERAGES),
    ),
    Mutant(
        *("training/averages.py", "SWAD's start at a record that is not the lowest"),
        "not all(losses[0] <= loss for loss in losses)",
        *("not any(losses[0] < loss for loss in losses)", _AVERAGES),
    ),
    Mutant(
        *("training/averages.py", "averaged weights that stay"),
        "            torch._foreach_copy_([*weights, *counts], before)",
        *("            torch._foreach_copy_(counts, before[len(weights) :])", _AVERAGES),
    ),
    Mutant(
        *("training/trainer.py", "a stop that saves nothing"),
        "            self._save_checkpoint(replace(progress, history=values))\n        self.table.line",
        *("            pass\n        self.table.line", f"{_STAGES} {_RESUME}"),
    ),
    # runs
    Mutant(
        *("runs/ownership.py", "a lost owner that writes on"),
        *("self._lost = self._lost or self._is_lost()", "self._lost = False", _OWNERSHIP),
    ),
    Mutant(
        *("runs/ownership.py", "a former owner's file that is not told"),
        "        if before and not (before.owner and before.owner.has_left()):",
        *("        if before and before.owner and before.owner.has_left():", _OWNERSHIP),
    ),
    Mutant(
        *("runs/ownership.py", "owners of other processes taken for dead"),
        "        if found and not _is_over(folder, found):",
        *("        if found and found.owner is None:", _OWNERSHIP),
    ),
    Mutant(
        *("runs/folder.py", "a torn last record taken for whole"),
        *('stream.read(1) in (b"\\n", b"}")', "bool(stream.read(1))"),
        "tests/runs/test_folder.py tests/sweeps/test_launch.py",
    ),
    # selection
    Mutant(
        *("selection/methods.py", "the first record instead of the last"),
        *(
            'in_order.drop_duplicates(SEED_KEYS, keep="last")',
            "in_order.drop_duplicates(SEED_KEYS)",
        ),
        _SELECTION,
    ),
    Mutant(
        *("selection/methods.py", "validation on in-splits"),
        *("mean_over_others(singles.out_split,", "mean_over_others(singles.in_split,", _SELECTION),
    ),
    Mutant(
        *("selection/methods.py", "runs on pairs that lack records count"),
        *("    pairs, envs = pairs.only(whole), envs[whole]\n", "", _SELECTION),
    ),
    Mutant(
        *("selection/methods.py", "single runs that lack records count"),
        "    singles = singles.only(_is_of_whole_run(singles.keys, "
        'singles.keys["test"].to_numpy()))\n',
        *("", _SELECTION),
    ),
    Mutant(
        *("selection/methods.py", "of equal draws the lowest first"),
        *("[True] * len(CELL_KEYS) + [False, False]", "[True] * len(CELL_KEYS) + [False, True]"),
        _SELECTION,
    ),
    # reporting
    Mutant(
        *("reporting/tables.py", "the sample's standard deviation"),
        "np.std(np.array(listed) / np.sqrt(len(listed)))",
        "np.std(np.array(listed) / np.sqrt(len(listed)), ddof=1)",
        _TABLES,
    ),
    Mutant(
        *("reporting/tables.py", "the best marked before rounding"),
        "round(cell.mean, cell.decimals if decimals is None else decimals) for cell",
        *("cell.mean for cell", "tests/reporting/test_style.py"),
    ),
    Mutant(
        *("reporting/tables.py", "a mean over the cells that there are"),
        *("    if not means or len(means) < len(cells):", "    if not means:", _TABLES),
    ),
    Mutant(
        *("reporting/statistics.py", "trials that some test domain lacks in the interval"),
        *("set.intersection(*(set(cell.trials)", "set.union(*(set(cell.trials)", _STATISTICS),
    ),
    Mutant(
        *("reporting/statistics.py", "Holm's factors in the wrong order"),
        "factors = np.arange(len(order), 0, -1)",
        *("factors = np.arange(1, len(order) + 1)", _STATISTICS),
    ),
    Mutant(
        *("reporting/statistics.py", "ties lost in the probability of improvement"),
        *(
            "[(1 + of_cell.mean()) / 2 for of_cell in signs]",
            "[(of_cell > 0).mean() for of_cell in signs]",
        ),
        _STATISTICS,
    ),
    # config
    Mutant(
        *("config/dimensions.py", "an integer that is rounded"),
        "        value = self.base ** random_state.uniform(self.low, self.high)\n"
        "        return int(value) if self.integer else value",
        "        value = self.base ** random_state.uniform(self.low, self.high)\n"
        "        return round(value) if self.integer else value",
        _DRAWS,
    ),
    Mutant(
        *("config/dimensions.py", "small images trained with weight decay"),
        "    if facts.small_images:\n        return Fixed(0.0,",
        *("    if facts.features:\n        return Fixed(0.0,", _DRAWS),
    ),
    Mutant(
        *("config/protocols/domainbed-2020.yaml", "a field of a protocol changed"),
        *("augment_validation: true", "augment_validation: false", "tests/config"),
    ),
    # hparams
    Mutant(
        *("hparams.py", "draws in sequence without the shared ones first"),
        "            drawn |= {\n"
        "                n: self.shared[n].draw(source) for n in _FIRST_IN_SEQUENCE if n in self.shared\n"
        "            }\n",
        *("", _DRAWS),
    ),
    Mutant(
        *("hparams.py", "one source for all names"),
        "            source.seed(seed_hash(seed, name))",
        *("            source.seed(seed)", _DRAWS),
    ),
    Mutant(
        *("hparams.py", "larger minibatches on DomainNet"),
        *('if facts.name == "DomainNet" and', "if not facts.name and", _DRAWS),
    ),
    # spec
    Mutant(
        *("spec.py", "fields that are as the protocol has them in the identity"),
        "or (name in usual and value != usual[name])",
        *("or name in usual", "tests/test_spec.py"),
    ),
    Mutant(
        *("spec.py", "a shared start that depends on the run"),
        'return seed_hash(self.dataset_label, self.trial_seed, "initial weights")',
        *(
            'return seed_hash(self.dataset_label, self.seed, "initial weights")',
            "tests/training/test_initial_weights.py",
        ),
    ),
    Mutant(
        *("spec.py", "a file that counts by its name"),
        'values["hparams"] = {**self.hparams, **digests}',
        *('values["hparams"] = dict(self.hparams)', "tests/test_spec.py"),
    ),
    # networks
    Mutant(
        *("networks/featurizer.py", "one normalisation left out"),
        *(
            "x = self.bn2(F.relu(self.conv3(x)))",
            "x = F.relu(self.conv3(x))",
            "tests/networks/test_networks.py",
        ),
    ),
    Mutant(
        *("networks/featurizer.py", "dropout after the last layer as well"),
        "        return self.output(x)",
        *("        return self.dropout(self.output(x))", "tests/networks/test_networks.py"),
    ),
    Mutant(
        *("networks/featurizer.py", "a nonlinear head without its second ReLU"),
        "        nn.Linear(in_features // 2, in_features // 4),\n        nn.ReLU(),\n",
        "        nn.Linear(in_features // 2, in_features // 4),\n",
        "tests/networks/test_networks.py",
    ),
    # launchers
    Mutant(
        *("launchers/local.py", "a worker's first death taken for the run's failure"),
        *("MOST_DEATHS = 2", "MOST_DEATHS = 1", "tests/launchers/test_local.py"),
    ),
    Mutant(
        *("launchers/local.py", "a task of a dead worker that is lost"),
        '            log.warning("warning: a worker died with %s: it is replaced", death)\n'
        "            self._queue.appendleft(index)\n",
        '            log.warning("warning: a worker died with %s: it is replaced", death)\n',
        "tests/launchers/test_local.py",
    ),
    Mutant(
        *("launchers/local.py", "no time limit"),
        "        elif self._is_overdue(worker):",
        *(
            "        elif not index and self._is_overdue(worker) and False:",
            "tests/launchers/test_local.py",
        ),
    ),
    # download
    Mutant(
        *("download/layouts.py", "an image with several categories in one folder only"),
        "        for category in sorted(categories):",
        *("        for category in sorted(categories)[:1]:", _TREES),
    ),
    Mutant(
        *("download/layouts.py", "images that the official lists do not name"),
        "        if path in names:",
        *("        if names:", _TREES),
    ),
    Mutant(
        *("download/layouts.py", "the first of two equal folders"),
        *("    if len(scored) > 1 and", "    if len(scored) > 2 and", _TREES),
    ),
    # sweeps
    Mutant(
        *("sweeps/store.py", "other settings in one folder"),
        "            if run_id not in planned and _place_in_grid(run) in taken:",
        *(
            "            if run_id in planned and not taken:",
            "tests/sweeps/test_launch.py",
        ),
    ),
    Mutant(
        *("sweeps/store.py", "earlier launches forgotten in the plan"),
        *(
            '"runs": {**before["runs"], **runs},',
            '"runs": dict(runs),',
            "tests/sweeps/test_launch.py tests/sweeps/test_status.py",
        ),
    ),
    Mutant(
        *("sweeps/finished.py", "the sum of weights instead of their mean"),
        "(value / count).to(first[name].dtype)",
        *("value.to(first[name].dtype)", "tests/sweeps/test_averaging.py"),
    ),
    # diagnostics and experiments
    Mutant(
        *("diagnostics/curvature.py", "the true Fisher's mean over classes"),
        "return torch.stack(per_class).sum(dim=0)",
        *("return torch.stack(per_class).mean(dim=0)", "tests/diagnostics/test_curvature.py"),
    ),
    Mutant(
        *("diagnostics/curvature.py", "a distance relative to the estimate"),
        "(estimates - exact).norm(dim=1) / exact.norm(dim=1)",
        *(
            "(estimates - exact).norm(dim=1) / estimates.norm(dim=1)",
            "tests/diagnostics/test_closeness.py",
        ),
    ),
    Mutant(
        *("diagnostics/curvature.py", "half of the Hessian"),
        *(
            "return (hessian + hessian.T) / 2",
            "return hessian.tril()",
            "tests/diagnostics/test_curvature.py",
        ),
    ),
    Mutant(
        *(
            "experiments/irm_colored_mnist/restart.py",
            "the loss not divided by the penalty's weight",
        ),
        *(
            "(loss + weight * penalty) / max(1.0, weight)",
            "loss + weight * penalty",
            "tests/experiments",
        ),
    ),
    Mutant(
        *("experiments/irm_colored_mnist/restart.py", "annealed one step late"),
        *("if step >= settings.anneal_step", "if step > settings.anneal_step", "tests/experiments"),
    ),
    Mutant(
        *("experiments/irm_colored_mnist/restart.py", "grey images in one channel"),
        *(
            "return self.images.repeat(1, 2)",
            "return torch.cat([self.images, 0 * self.images], dim=1)",
        ),
        "tests/experiments",
    ),
    # cli
    Mutant(
        *("cli/common.py", "status 0 after wrong input"),
        '        tell(f"error: {printable(reason)}")\n        return 2',
        '        tell(f"error: {printable(reason)}")\n        return 0',
        "tests/cli/test_main.py tests/cli/test_common.py tests/test_program.py",
    ),
    Mutant(
        *("cli/common.py", "control characters on the terminal"),
        *(
            'tell(f"error: {printable(reason)}")',
            'tell(f"error: {reason}")',
            "tests/cli/test_common.py tests/misuse/test_any_text.py",
        ),
    ),
    Mutant(
        *("cli/__init__.py", "today's names of commands gone"),
        *('    "prepare": "data pack",\n', "", "tests/cli/test_main.py tests/test_program.py"),
    ),
    Mutant(
        *("core/stopping.py", "a repeated signal that is ignored"),
        *(
            "        if repeated:\n            raise",
            "        if repeated and not number:\n            raise",
        ),
        "tests/core/test_stopping.py",
    ),
)
