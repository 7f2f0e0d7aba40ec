"""Known bugs of ports of these methods, each with a test that would find it.

``WHERE`` has one row for each; tests outside this file are beside what they test.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from embedserve_training.losses.moco import info_nce
from embedserve_training.methods import instance_discrimination, moco
from embedserve_training.methods.moco import MoCo
from embedserve_training.networks.backbones import Backbone
from embedserve_training.plan.config import TrainConfig
from embedserve_training.plan.plan import Facts, plan
from tests.training.method_cases import build, drawn_views, seeded

HERE = Path(__file__).parent

WHERE: dict[tuple[int, str], tuple[str, ...]] = {
    (1, "no gather across processes, or one without gradient"): (
        "test_two_processes.py::test_bug_1_no_gather_or_one_without_gradient_would_show",
        "test_two_processes.py::test_two_processes_give_the_losses_and_gradients_of_one_on_the_global_batch",
    ),
    (2, "labels without the offset of the process"): (
        "test_two_processes.py::test_bug_2_labels_without_their_offset_would_show",
        "test_losses_cpc.py::test_candidates_are_the_targets_of_all_processes_and_the_label_is_the_own_row",
    ),
    (3, "a raw all-reduce in the loss: the gradient is divided by the number of processes"): (
        "test_two_processes.py::test_bug_3_a_raw_all_reduce_would_give_half_the_gradient",
        "test_losses_barlow.py::test_a_sum_without_gradient_in_its_backward_gives_another_gradient",
    ),
    (4, "batch-norm tells a query of MoCo which key is its own"): (
        "test_known_bugs.py::test_bug_4_a_key_is_normalised_beside_other_images_than_its_query",
        "test_known_bugs.py::test_bug_4_without_shuffling_a_key_would_be_normalised_beside_the_images_of_its_query",
        "test_known_bugs.py::test_bug_4_recipes_of_moco_split_batch_norm_on_one_process",
    ),
    (5, "one forward pass or two, with different batch-norm statistics"): (
        "test_known_bugs.py::test_bug_5_both_views_pass_together_in_simclr_and_one_after_the_other_in_barlow_twins",
        "test_known_bugs.py::test_bug_5_one_pass_and_two_are_not_the_same",
    ),
    (6, "symmetric MoCo enqueues between its halves, so that a view becomes its own negative"): (
        "test_known_bugs.py::test_bug_6_no_key_of_a_step_is_a_negative_in_either_half_of_symmetric_moco",
    ),
    (7, "keys enqueued before the logits"): (
        "test_known_bugs.py::test_bug_7_the_queue_stays_as_it_is_until_the_step_is_taken",
        "test_losses_moco.py::test_the_queue_is_left_as_it_was",
    ),
    (8, "a queue longer than the data, in which an image meets its own key"): (
        "test_plan.py::test_a_queue_longer_than_half_the_images_holding_an_image_among_its_own_negatives_does_not_happen",
    ),
    (9, "a ring buffer that needs K to be a multiple of B, or drops the rest"): (
        "test_memory.py::test_the_queue_holds_the_last_keys_whatever_its_size_and_that_of_batches",
    ),
    (10, "queue, position, bank or normaliser lost on resume"): (
        "test_known_bugs.py::test_bug_10_what_a_method_remembers_is_in_its_state_dict",
        "test_methods.py::test_a_method_continues_from_its_state_dict_bit_for_bit",
        "test_trainer_resume.py::test_a_run_killed_within_a_step_and_started_again_equals_an_uninterrupted_one_to_the_bit",
    ),
    (11, "weight decay of batch-norm and biases with LARS"): (
        "test_optim.py::test_weight_decay_on_batch_norm_and_biases_with_lars_as_in_many_ports_does_not_happen",
    ),
    (12, "a cosine set up in steps and stepped in epochs, without warm-up"): (
        "test_optim.py::test_a_cosine_set_up_in_steps_but_stepped_in_epochs_without_warm_up_does_not_happen",
    ),
    (13, 'bool("False") is True on the command line'): (
        "test_plan.py::test_set_of_a_false_truth_value_is_not_true_as_argparse_with_type_bool_has_it",
    ),
    (14, "exp of a logit overflows half precision; log of a softmax plus an epsilon"): (
        "test_losses.py::test_exp_of_a_logit_at_tau_07_does_not_overflow_half_precision",
        "test_losses_moco.py::test_exp_of_a_logit_at_tau_07_does_not_overflow_half_precision",
        "test_losses_instance.py::test_exp_of_a_cosine_at_tau_07_does_not_overflow_half_precision",
        "test_losses_cpc.py::test_dot_products_beyond_the_range_of_fp16_cost_a_finite_loss_in_fp32",
        "test_losses_barlow.py::test_correlations_of_half_precision_embeddings_are_summed_in_fp32",
    ),
    (15, "evaluation in training mode; a temperature of the kNN vote that changed silently"): (
        "test_evaluate.py::test_the_figures_are_those_of_images_embedded_one_by_one_in_evaluation_mode",
        "test_evaluate_neighbours.py::test_the_temperature_of_the_vote_is_a_tenth_and_did_not_drift_to_seven_hundredths",
    ),
    (16, "the best epoch of the test set reported as the result"): (
        "test_evaluate.py::test_the_last_checkpoint_is_measured_and_no_best_epoch_is_known",
    ),
    (17, "augmentations in another order; grey images through hue and saturation"): (
        "test_augment.py::test_operations_come_in_the_documented_order_as_applied_one_by_one_to_each_image",
        "test_augment.py::test_grey_images_stay_grey",
    ),
    (18, "one set of augmentation parameters for a whole batch, or for every worker"): (
        "test_augment.py::test_every_augmentation_draws_its_parameters_for_each_image",
        "test_augment.py::test_processes_that_share_a_batch_get_the_views_of_one_process_that_has_it_all",
    ),
    (19, "a resumed run reads the same images again, or restarts its schedule"): (
        "test_trainer.py::test_a_stopped_and_resumed_run_equals_an_uninterrupted_one_to_the_bit",
        "test_trainer_resume.py::test_a_run_killed_within_a_step_and_started_again_equals_an_uninterrupted_one_to_the_bit",
    ),
    (20, "an incomplete last batch; batch-norm of a single image"): (
        "test_trainer.py::test_every_image_is_used_once_per_epoch_but_for_the_incomplete_batch",
        "test_losses_barlow.py::test_a_last_batch_that_is_smaller_is_divided_by_its_own_size",
        "test_plan.py::test_fewer_than_two_images_for_each_process_are_refused",
    ),
}


def checks_in(file: Path) -> set[str]:
    """Names of the test functions of a file that can fail: those with an assertion or an expected error."""
    found = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            text = ast.unparse(node)
            if "assert" in text or "pytest.raises" in text:
                found.add(node.name)
    return found


@pytest.mark.parametrize(("number", "bug"), WHERE, ids=[str(number) for number, _ in WHERE])
def test_every_known_bug_has_its_tests_where_the_table_says(number: int, bug: str) -> None:
    for place in WHERE[number, bug]:
        file, _, name = place.partition("::")
        [path] = HERE.rglob(file)
        assert name in checks_in(path), place


def test_the_table_has_every_number_and_every_test_that_is_named_after_one() -> None:
    assert [number for number, _ in WHERE] == list(range(1, 21))
    listed = {place for places in WHERE.values() for place in places}
    named = {
        f"{file.name}::{name}"
        for file in HERE.rglob("test_*.py")
        for name in checks_in(file)
        if name.startswith("test_bug_")
    }
    assert named <= listed


# --- Batch-norm in MoCo --------------------------------------------------------------------------------------------


class Normalised(nn.Module):
    """A minimal network: batch-norm and a mean over positions, 3 values."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x_BCSS: Tensor) -> Tensor:
        y_BC: Tensor = self.norm(x_BCSS).mean((2, 3))
        return y_BC


def normalised_together(
    monkeypatch: pytest.MonkeyPatch, *, shuffled: bool
) -> tuple[set[frozenset[int]], set[frozenset[int]]]:
    """Sets of queries and of keys that batch-norm normalises together in one step; image i has brightness i / 16."""
    torch.manual_seed(0)
    method = MoCo(Backbone(Normalised(), "", 3), tau=0.2, queue_size=8, bn_splits=4, projection=4).train()
    seen: list[frozenset[int]] = []
    original = F.batch_norm

    def record(x_BCSS: Tensor, *args: Any) -> Tensor:
        brightness_B = x_BCSS.detach()[:, 0, 0, 0] * 0.25 + 0.5  # before the backbone's centring
        seen.append(frozenset((brightness_B * 16).round().int().tolist()))
        return original(x_BCSS, *args)

    monkeypatch.setattr(F, "batch_norm", record)
    if not shuffled:
        monkeypatch.setattr(torch, "randperm", lambda count, generator: torch.arange(count))
    images_BCSS = (torch.arange(16) / 16).view(16, 1, 1, 1).expand(16, 3, 2, 2)
    method([images_BCSS, images_BCSS], torch.arange(16), seeded())
    assert len(seen) == 8  # four parts of queries, four of keys
    return set(seen[:4]), set(seen[4:])


def test_bug_4_a_key_is_normalised_beside_other_images_than_its_query(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, keys = normalised_together(monkeypatch, shuffled=True)
    assert frozenset().union(*queries) == frozenset().union(*keys) == frozenset(range(16))
    assert all(len(part) == 4 for part in queries | keys)
    assert not queries & keys


def test_bug_4_without_shuffling_a_key_would_be_normalised_beside_the_images_of_its_query(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queries, keys = normalised_together(monkeypatch, shuffled=False)
    assert queries == keys


def test_bug_4_recipes_of_moco_split_batch_norm_on_one_process() -> None:
    for facts in (Facts(images=5000, median_side_px=28), Facts(images=5000, median_side_px=300, cuda=True)):
        assert plan(TrainConfig(method="moco", epochs=1), facts).settings.bn_splits > 1


# --- One pass or two -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "expected"), [("simclr", [16]), ("barlow-twins", [8, 8]), ("moco", [8])])
def test_bug_5_both_views_pass_together_in_simclr_and_one_after_the_other_in_barlow_twins(
    name: str, expected: list[int]
) -> None:
    method = build(name)
    sizes: list[int] = []
    method.backbone.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    method(drawn_views(method), torch.arange(8), seeded())
    assert sizes == expected


def test_bug_5_one_pass_and_two_are_not_the_same() -> None:
    method = build("simclr")
    first_BCSS, second_BCSS = drawn_views(method)
    with torch.no_grad():
        one_pass = method.backbone(torch.cat([first_BCSS, second_BCSS + 0.2]))
        two_passes = torch.cat([method.backbone(first_BCSS), method.backbone(second_BCSS + 0.2)])
    assert (one_pass - two_passes).abs().max() > 0.1


# --- MoCo's queue --------------------------------------------------------------------------------------------------


def test_bug_6_no_key_of_a_step_is_a_negative_in_either_half_of_symmetric_moco(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    method = build("moco", symmetric=True)
    assert isinstance(method, MoCo)
    negatives: list[Tensor] = []
    original: Callable[..., Any] = info_nce

    def record(q_BD: Tensor, k_BD: Tensor, queue_KD: Tensor, tau: float) -> Any:
        negatives.append(queue_KD.clone())
        return original(q_BD, k_BD, queue_KD, tau)

    monkeypatch.setattr(moco, "info_nce", record)
    before_KD = method.queue.keys_KD.clone()
    method(drawn_views(method), torch.arange(8), seeded())
    assert len(negatives) == 2
    assert all(torch.equal(queue_KD, before_KD) for queue_KD in negatives)
    method.after_step()
    assert int(method.queue.position) == 16  # the keys of both halves are in the queue now


def test_bug_7_the_queue_stays_as_it_is_until_the_step_is_taken() -> None:
    method = build("moco")
    assert isinstance(method, MoCo)
    before = {name: value.clone() for name, value in method.queue.state_dict().items()}
    method(drawn_views(method), torch.arange(8), seeded()).loss.backward()
    assert all(torch.equal(value, before[name]) for name, value in method.queue.state_dict().items())
    keys_BP = torch.cat(method.new_keys)
    method.after_step()
    assert torch.equal(method.queue.keys_KD[:8], keys_BP)
    assert torch.equal(method.queue.keys_KD[8:], before["keys_KD"][8:])


# --- What is kept ----------------------------------------------------------------------------------------------------


def test_bug_10_what_a_method_remembers_is_in_its_state_dict() -> None:
    assert {"queue.keys_KD", "queue.position"} <= set(build("moco").state_dict())
    assert any(name.startswith("key_backbone.") for name in build("moco").state_dict())
    method = build("instance-discrimination", noise=4)
    assert isinstance(method, instance_discrimination.InstanceDiscrimination)
    assert {"bank.rows_ND", "normaliser"} <= set(method.state_dict())
