"""All five methods: loss references, gradients, state, precision, and the length of their files."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from embedserve_training import methods
from embedserve_training.methods.instance_discrimination import InstanceDiscrimination, _mean_exponential
from embedserve_training.methods.method import Method
from embedserve_training.methods.moco import MoCo
from embedserve_training.networks import memory
from embedserve_training.run import optim
from tests.training.method_cases import (
    BUILDERS,
    IMAGES,
    barlow_twins,
    build,
    cpc,
    drawn_views,
    in_double,
    instance_discrimination,
    moco,
    seeded,
    simclr,
)

BATCH = 8
every_method = pytest.mark.parametrize("name", BUILDERS)


def indices(batch: int = BATCH) -> Tensor:
    return torch.arange(batch) * 5 % IMAGES


def step(method: Method, seed: int = 0) -> Tensor:
    """Forward, backward and after_step without an optimiser; the loss."""
    output = method(drawn_views(method, BATCH, seed), indices(), seeded(seed))
    output.loss.backward()
    method.after_step()
    loss: Tensor = output.loss.detach()
    return loss


class Constant(nn.Module):
    """Returns the same vector for every row."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("vector_D", torch.linspace(-1, 2, width))

    def forward(self, x: Tensor) -> Tensor:
        vector_D: Tensor = self.vector_D  # type: ignore[assignment]
        return vector_D.expand(len(x), -1)


# --- Loss references -----------------


def test_simclr_that_gives_all_images_the_same_vector_costs_its_collapse_reference() -> None:
    method = simclr()
    method.projector = Constant(16)  # type: ignore[assignment]
    loss = method(drawn_views(method), indices(), seeded()).loss
    assert loss.item() == pytest.approx(method.loss_references(BATCH).collapse, rel=1e-6)
    assert method.loss_references(256).collapse == pytest.approx(6.2364, abs=1e-4)  # ln 511


def test_moco_whose_queue_is_full_of_the_same_vector_costs_its_collapse_reference() -> None:
    method = moco()
    method.head = method.key_head = Constant(16)  # type: ignore[assignment]
    for _ in range(3):  # 24 keys fill a queue of 20
        loss = method(drawn_views(method), indices(), seeded()).loss
        method.queue.put(method.new_keys.pop())
    assert loss.item() != pytest.approx(
        method.loss_references(BATCH).collapse, rel=0.05
    )  # not yet: random keys were left
    loss = method(drawn_views(method), indices(), seeded()).loss
    assert loss.item() == pytest.approx(method.loss_references(BATCH).collapse, rel=1e-6)
    assert moco(queue_size=4096).loss_references(BATCH).collapse == pytest.approx(8.318, abs=1e-3)  # ln 4097


def test_barlow_twins_that_gives_all_images_the_same_vector_costs_its_number_of_dimensions() -> None:
    method = barlow_twins()
    method.projector = Constant(16)  # type: ignore[assignment]
    loss = method(drawn_views(method), indices(), seeded()).loss
    assert loss.item() == method.loss_references(BATCH).collapse == 16.0


def test_instance_discrimination_whose_bank_holds_one_vector_costs_its_collapse_reference() -> None:
    method = instance_discrimination()
    method.head = Constant(16)  # type: ignore[assignment]
    method.bank.rows_ND.copy_(torch.nn.functional.normalize(torch.linspace(-1, 2, 16), dim=0).expand(IMAGES, -1))
    loss = method(drawn_views(method), indices(), seeded()).loss
    assert loss.item() == pytest.approx(method.loss_references(BATCH).collapse, rel=1e-6)
    assert method.loss_references(BATCH).collapse == pytest.approx(3.17805, abs=1e-5)  # ln 24


def test_instance_discrimination_with_noise_costs_far_more_in_collapse_than_at_chance_as_its_references_say() -> None:
    torch.manual_seed(0)
    method = InstanceDiscrimination(BUILDERS["cpc"]().backbone, 20_000, tau=0.2, noise=512, projection=32)
    method.head = Constant(32)  # type: ignore[assignment]
    views_VBCSS, indices_B = drawn_views(method, 32), torch.arange(32)
    method(views_VBCSS, indices_B, seeded())  # estimates Z on a bank of random directions
    method.bank.rows_ND.copy_(torch.nn.functional.normalize(torch.linspace(-1, 2, 32), dim=0).expand(20_000, -1))
    loss = method(views_VBCSS, indices_B, seeded()).loss
    references = method.loss_references(32)
    assert loss.item() == pytest.approx(references.collapse, rel=0.02)
    assert references.chance == pytest.approx(7.24, abs=0.01)  # 1 + ln 513
    assert references.collapse > 2 * references.chance


@pytest.mark.parametrize(("scale", "dimension"), [(2.0, 3), (5.0, 16), (10.0, 128)])
def test_the_mean_exponential_of_a_random_cosine_is_that_of_many_draws(scale: float, dimension: int) -> None:
    draws_ND = torch.randn(100_000, dimension, dtype=torch.float64, generator=seeded())
    cosines_N = torch.nn.functional.normalize(draws_ND, dim=1)[:, 0]
    assert _mean_exponential(scale, dimension) == pytest.approx((scale * cosines_N).exp().mean().item(), rel=0.03)


def test_the_mean_exponential_on_the_unit_sphere_is_sinh_of_the_scale_over_the_scale() -> None:
    assert _mean_exponential(2.0, 3) == pytest.approx(1.8134302, rel=1e-7)  # the cosine is uniform: sinh(2) / 2


def test_cpc_that_gives_all_patches_the_same_vector_costs_its_collapse_reference() -> None:
    method = cpc()
    method.backbone.body = Constant(256)
    loss = method(drawn_views(method), indices(), seeded()).loss
    # 8 images of 3 × 3 patches: 8 · 3 · 2 candidates one row below, 8 · 3 two rows below.
    assert method.loss_references(BATCH).collapse == pytest.approx((3.8712 + 3.1781) / 2, abs=1e-4)
    assert loss.item() == pytest.approx(method.loss_references(BATCH).collapse, rel=1e-6)


# --- One step ------------------------------------------------------------------------------------------------------


@every_method
def test_every_trained_weight_gets_a_gradient_and_no_other_does(name: str) -> None:
    method = build(name)
    step(method)
    for weight_name, weight in method.named_parameters():
        assert (weight.grad is not None) == weight.requires_grad, weight_name
        assert weight.grad is None or bool(torch.isfinite(weight.grad).all()), weight_name


@every_method
def test_the_output_of_a_step_has_the_documented_shapes_and_only_the_loss_has_a_gradient(name: str) -> None:
    method = build(name)
    output = method(drawn_views(method), indices(), seeded())
    assert output.loss.shape == ()
    assert output.loss.dtype == torch.float32
    assert output.loss.requires_grad
    assert output.views == method.views
    assert output.features_ND.shape[1] == method.backbone.dimension
    assert len(output.features_ND) in (BATCH, output.views * BATCH)
    assert len(output.projections_ND) % (output.views * BATCH) == 0
    for tensor in (output.features_ND, output.projections_ND, *output.diagnostics.values()):
        assert not tensor.requires_grad
    assert all(value.shape == () for value in output.diagnostics.values())


@every_method
def test_a_step_is_a_function_of_weights_views_and_generator(name: str) -> None:
    torch.manual_seed(1)
    first = step(build(name))
    torch.manual_seed(2)
    assert torch.equal(step(build(name)), first)


@every_method
def test_a_step_in_bf16_has_an_fp32_loss_near_that_of_fp32(name: str) -> None:
    method, same = build(name), build(name)
    views_VBCSS = drawn_views(method)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = method(views_VBCSS, indices(), seeded())
    output.loss.backward()
    method.after_step()
    assert output.loss.dtype == torch.float32
    assert output.loss.item() == pytest.approx(same(views_VBCSS, indices(), seeded()).loss.item(), rel=0.05)
    for weight in method.parameters():
        assert weight.grad is None or bool(torch.isfinite(weight.grad).all())
    assert all(value.dtype != torch.bfloat16 for value in method.state_dict().values())


@every_method
def test_a_step_of_a_method_in_fp64_is_in_fp64_throughout(name: str) -> None:
    extra: dict[str, Any] = {"noise": 6, "proximal_weight": 1.0} if name == "instance-discrimination" else {}
    method = in_double(build(name, **extra))
    output = method([view_BCSS.double() for view_BCSS in drawn_views(method)], indices(), seeded())
    output.loss.backward()
    method.after_step()
    gradients = [weight.grad for weight in method.parameters() if weight.grad is not None]
    state = [value for value in method.state_dict().values() if value.is_floating_point()]
    diagnostics = [value for key, value in output.diagnostics.items() if key != "top1"]  # a share of hits
    outputs = [output.loss, output.features_ND, output.projections_ND]
    for tensor in (*outputs, *gradients, *state, *diagnostics):
        assert tensor.dtype == torch.float64
    # Nothing was rounded to fp32 on the way.
    assert output.loss != output.loss.float().double()
    assert all(not torch.equal(grad, grad.float().double()) for grad in gradients)
    for remembered in (key for key in method.state_dict() if key in ("queue.keys_KD", "bank.rows_ND", "normaliser")):
        value = method.state_dict()[remembered]
        assert not torch.equal(value, value.float().double()), remembered


@every_method
def test_descent_lowers_the_loss(name: str) -> None:
    method = build(name)
    optimizer = torch.optim.AdamW([weight for weight in method.parameters() if weight.requires_grad], lr=1e-3)
    losses = []
    for seed in range(20):
        output = method(drawn_views(method, BATCH, seed % 3), torch.arange(BATCH) + BATCH * (seed % 3), seeded(seed))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        method.after_step()
        losses.append(output.loss.item())
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


# --- Accumulation --------------------------------------------------------------------------------------------------


def in_parts(method: Method, parts: int) -> dict[str, Tensor]:
    """Gradients of a batch that is computed part by part; after_step is called once."""
    dtype = next(method.parameters()).dtype
    views_VBCSS, generator = [view_BCSS.to(dtype) for view_BCSS in drawn_views(method)], seeded()
    for part in range(parts):
        own_VBCSS = [view_BCSS.chunk(parts)[part] for view_BCSS in views_VBCSS]
        (method(own_VBCSS, indices().chunk(parts)[part], generator).loss / parts).backward()
    method.after_step()
    return {name: weight.grad for name, weight in method.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize(
    "case",
    [
        lambda parts: build("moco", bn_splits=4 // parts),
        lambda parts: build("moco", bn_splits=4 // parts, symmetric=True),
    ],
    ids=["one-way", "symmetric"],
)
def test_moco_in_two_parts_has_the_queue_lengths_and_key_weights_of_the_whole_batch(
    case: Callable[[int], MoCo],
) -> None:
    # Keys are shuffled within a part, so batch-norm normalises them with other images, and gradients differ.
    whole, parts = case(1), case(2)
    in_parts(whole, 1)
    in_parts(parts, 2)
    assert torch.equal(whole.queue.position, parts.queue.position)
    assert all(torch.equal(a, b) for a, b in zip(whole.key_head.parameters(), parts.key_head.parameters(), strict=True))


def without_batch_norm(method: MoCo) -> MoCo:
    from embedserve_training.networks import batch_norm

    batch_norm.to_layer_norm(method.backbone)
    method.key_backbone = memory.momentum_copy(method.backbone)
    return method


def test_moco_without_batch_norm_has_in_two_parts_the_gradients_and_the_queue_of_the_whole_batch() -> None:
    whole, parts = (in_double(without_batch_norm(build("moco", bn_splits=1))) for _ in range(2))  # type: ignore[arg-type]
    for (name, one), other in zip(in_parts(whole, 1).items(), in_parts(parts, 2).values(), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-11, atol=1e-13, msg=name)
    torch.testing.assert_close(parts.state_dict(), whole.state_dict(), rtol=1e-12, atol=1e-14)


def test_instance_discrimination_has_in_two_parts_the_gradients_and_the_bank_of_split_batch_norm() -> None:
    from embedserve_training.networks import batch_norm

    whole, parts = (in_double(build("instance-discrimination")) for _ in range(2))
    batch_norm.split(whole, 2)
    assert isinstance(whole, InstanceDiscrimination)
    assert isinstance(parts, InstanceDiscrimination)
    for (name, one), other in zip(in_parts(whole, 1).items(), in_parts(parts, 2).values(), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-11, atol=1e-13, msg=name)
    torch.testing.assert_close(parts.bank.rows_ND, whole.bank.rows_ND, rtol=1e-12, atol=1e-14)


# --- State ----------------------------------------------------------------------------------------------------------


@every_method
def test_the_optimiser_gets_all_trained_and_no_frozen_weights(name: str) -> None:
    method = build(name)
    given = {id(weight) for group in optim.parameter_groups(method, 0.1) for weight in group["params"]}
    assert given == {id(weight) for weight in method.parameters() if weight.requires_grad}


@every_method
def test_a_method_continues_from_its_state_dict_bit_for_bit(name: str) -> None:
    extra: dict[str, Any] = {"noise": 6} if name == "instance-discrimination" else {}
    method, other = build(name, **extra), build(name, seed=9, **extra)
    step(method)
    other.load_state_dict(method.state_dict())
    assert torch.equal(step(method, 1), step(other, 1))
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in method.state_dict().items())


def test_there_is_a_case_here_for_every_method() -> None:
    assert set(BUILDERS) == set(methods.METHODS)
    assert all(type(build(name)) is methods.METHODS[name] for name in BUILDERS)


@every_method
def test_a_method_is_a_short_file_that_names_its_paper(name: str) -> None:
    file = Path(inspect.getfile(methods.METHODS[name]))
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 160
    assert "arXiv" in text.partition('"""')[2].partition('"""')[0]  # the paper is named at the top


def test_only_methods_of_one_view_take_one_view() -> None:
    assert {name: BUILDERS[name]().views for name in BUILDERS} == {
        "simclr": 2,
        "moco": 2,
        "barlow-twins": 2,
        "instance-discrimination": 1,
        "cpc": 1,
    }
