"""CPC: the encoder cannot see the patches to be predicted, and takes whole images too."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from embedserve_training.methods.cpc import CPC, RowContext
from embedserve_training.methods.patches import crop_and_pad
from embedserve_training.networks.backbones import Backbone
from tests.training.method_cases import PATCHES, SIZE_PX, build, cpc, drawn_views, seeded

BATCH = 4
GRID = 7
INDICES = torch.arange(BATCH)


def a_context(layers: int = 4) -> RowContext:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return RowContext(8, layers).double()


def changes(context: RowContext, row: int, column: int) -> Tensor:
    """Where the context changes with one position of its input: bool [G, G]."""
    z_BDGG = torch.randn(1, 8, GRID, GRID, generator=seeded()).double()
    other_BDGG = z_BDGG.clone()
    other_BDGG[:, :, row, column] += 5.0
    return (context(z_BDGG) != context(other_BDGG))[0].any(0)


@pytest.mark.parametrize("layers", [1, 2, 4])
@pytest.mark.parametrize("row", range(GRID))
def test_the_context_of_a_row_does_not_depend_on_rows_below_it(row: int, layers: int) -> None:
    for column in range(GRID):
        changed_GG = changes(a_context(layers), row, column)
        assert not changed_GG[:row].any()
        assert changed_GG[row:].any()


def test_each_layer_of_the_context_looks_one_row_up_and_one_place_to_either_side() -> None:
    for layers in (1, 2, 3):
        changed_GG = changes(a_context(layers), 1, 3)
        seen = {(row, column) for row in range(GRID) for column in range(GRID) if changed_GG[row, column]}
        rows, columns = {row for row, _ in seen}, {column for _, column in seen}
        assert rows == set(range(1, 2 + layers))
        assert columns == set(range(3 - layers, 4 + layers))


def test_contexts_of_different_images_are_independent() -> None:
    context, z_BDGG = a_context(), torch.randn(3, 8, GRID, GRID, generator=seeded()).double()
    torch.testing.assert_close(context(z_BDGG)[1:2], context(z_BDGG[1:2]))


@pytest.mark.parametrize("directions", [1, 2, 4])
def test_predictions_use_only_patches_on_the_near_side_of_their_targets(
    directions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the gradient of each prediction for the patches, rotated back for each direction."""
    from embedserve_training.losses.cpc import cpc_info_nce
    from embedserve_training.methods import cpc as module

    calls: list[tuple[Tensor, Tensor]] = []
    loss = cpc_info_nce

    def record(predicted_ND: Tensor, target_ND: Tensor, gather: object) -> tuple[Tensor, dict[str, Tensor]]:
        calls.append((predicted_ND, target_ND))
        return loss(predicted_ND, target_ND)

    monkeypatch.setattr(module, "cpc_info_nce", record)
    method = build("cpc", directions=directions)
    z_ND = torch.randn(9, 256, generator=seeded()).requires_grad_()  # one image of 3 × 3 patches

    class Given(nn.Module):
        def forward(self, patches_NCPP: Tensor) -> Tensor:
            return z_ND

    method.backbone.body = Given()
    method(drawn_views(method, 1), INDICES[:1], seeded())
    assert len(calls) == directions * 2  # distances 1 and 2
    place_GG = torch.arange(9).view(3, 3)
    for number, (predicted_ND, target_ND) in enumerate(calls):
        turn, step = ({1: (0,), 2: (0, 2), 4: (0, 1, 2, 3)}[directions])[number // 2], number % 2 + 1
        turned_GG = place_GG.rot90(turn)
        for row in range(3 - step):
            for column in range(3):
                which = row * 3 + column
                target = int(turned_GG[row + step, column])
                assert torch.equal(target_ND[which], z_ND[target])
                [gradient_ND] = torch.autograd.grad(predicted_ND[which].sum(), z_ND, retain_graph=True)
                used = set(gradient_ND.abs().sum(1).nonzero().flatten().tolist())
                assert used <= set(turned_GG[: row + 1].flatten().tolist())
                assert int(turned_GG[row, column]) in used


def test_a_change_in_one_patch_changes_its_embedding_and_no_other() -> None:
    method = build("cpc")
    patches_NCPP = PATCHES.cut(drawn_views(method, BATCH)[0])
    other_NCPP = patches_NCPP.clone()
    other_NCPP[13] = 1 - other_NCPP[13]
    with torch.no_grad():
        moved_N = (method.backbone(patches_NCPP) - method.backbone(other_NCPP)).abs().amax(1)
    assert moved_N[13] > 0.1
    assert moved_N[torch.arange(len(moved_N)) != 13].max() < 1e-5


def test_layer_norm_replaces_each_batch_norm() -> None:
    method = build("cpc")
    assert not any(isinstance(module, _BatchNorm) for module in method.modules())
    norms = [module for module in method.modules() if isinstance(module, nn.GroupNorm)]
    assert len(norms) == 11  # as many as small-cnn has: stem, 3 blocks of 2 and 2 shortcuts, reduction, output
    assert all(norm.num_groups == 1 for norm in norms)


def test_a_run_starts_near_chance_because_predictors_start_near_zero() -> None:
    method = build("cpc")
    loss = method(drawn_views(method, BATCH), INDICES, seeded()).loss.item()
    assert loss == pytest.approx(method.loss_references(BATCH).chance, abs=0.3)


def test_the_loss_is_the_mean_over_distances_of_the_paper_written_out() -> None:
    method = build("cpc")
    assert isinstance(method, CPC)
    views_VBCSS = drawn_views(method, BATCH)
    with torch.no_grad():
        shown_NCPP = crop_and_pad(PATCHES.cut(views_VBCSS[0]), seeded(3), method.processes)
        z_BGGD = method.backbone(shown_NCPP).view(BATCH, 3, 3, 256)
        c_BGGD = method.contexts[0](z_BGGD.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    places = [(image, row, column) for image in range(BATCH) for row in range(3) for column in range(3)]
    distances = []
    for step in (1, 2):
        weight_DD = method.predictors[0][step - 1].weight[:, :, 0, 0].detach()  # type: ignore[index]
        candidates = [place for place in places if place[1] >= step]
        losses = []
        for image, row, column in candidates:
            predicted_D = weight_DD @ c_BGGD[image, row - step, column]
            scores = [float(z_BGGD[place] @ predicted_D) for place in candidates]
            own = scores[candidates.index((image, row, column))]
            losses.append(math.log(sum(math.exp(score - own) for score in scores)))
        distances.append(sum(losses) / len(losses))
    loss = method(views_VBCSS, INDICES, seeded(3)).loss.item()
    assert loss == pytest.approx(sum(distances) / 2, rel=1e-4)


def test_the_encoder_gives_each_whole_image_its_own_embedding() -> None:
    method = build("cpc").eval()
    images_BCSS = drawn_views(method, BATCH)[0]
    with torch.no_grad():
        h_BD = method.backbone(images_BCSS)
        alone_BD = torch.cat([method.backbone(image) for image in images_BCSS.split(1)])
    assert h_BD.shape == (BATCH, method.backbone.dimension)
    torch.testing.assert_close(h_BD, alone_BD, rtol=1e-4, atol=1e-5)


def test_a_patch_size_that_the_backbone_does_not_take_is_refused_when_the_method_is_built() -> None:
    from embedserve.errors import InvalidInput
    from embedserve_training import methods
    from embedserve_training.plan import plan
    from embedserve_training.plan.config import TrainConfig

    config = TrainConfig(method="cpc", size_px=SIZE_PX, patch_px=5, patch_grid=3, backbone="small-cnn", epochs=1)
    settings = plan.plan(config, plan.Facts(images=64, median_side_px=SIZE_PX)).settings
    with pytest.raises(InvalidInput, match="does not take patches of 5 px"):
        methods.build(settings, 64)


def test_each_direction_has_its_own_context_and_predictors() -> None:
    method = cpc(directions=4)
    assert len(method.contexts) == len(method.predictors) == 4
    weights = [next(context.parameters()) for context in method.contexts]
    assert len({weight.data_ptr() for weight in weights}) == 4
    assert isinstance(method.backbone, Backbone)
