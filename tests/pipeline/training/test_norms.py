"""The batch norm of several ranks is torch's own on the whole batch: answers, gradients, running statistics."""

from __future__ import annotations

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from pipeline.ranks import Place, Ranks
from pipeline.training.norms import NormsOfAllRanks


class Meeting:
    """Where the threads of one test add up what they have."""

    def __init__(self, n_ranks: int) -> None:
        self.barrier = threading.Barrier(n_ranks, timeout=30)
        self.values: list[Tensor] = [torch.empty(0)] * n_ranks


class Threads(Ranks):
    """A rank that is a thread."""

    def __init__(self, rank: int, meeting: Meeting) -> None:
        super().__init__(Place(rank=rank, world_size=len(meeting.values)))
        self.meeting = meeting

    def sum(self, tensor: Tensor) -> Tensor:
        """In place, as the others'."""
        meeting = self.meeting
        meeting.values[self.rank] = tensor.clone()
        meeting.barrier.wait()
        tensor.copy_(torch.stack(meeting.values).sum(0))
        meeting.barrier.wait()
        return tensor


CASES = {
    "2d": (lambda: nn.BatchNorm2d(5), (7, 5, 4, 3)),
    "1d": (lambda: nn.BatchNorm1d(5), (7, 5)),
    "cumulative": (lambda: nn.BatchNorm2d(5, momentum=None), (7, 5, 2, 2)),
    "without weights": (lambda: nn.BatchNorm2d(5, affine=False), (7, 5, 2, 2)),
    "without statistics": (lambda: nn.BatchNorm2d(5, track_running_stats=False), (7, 5, 2, 2)),
    "one image a rank": (lambda: nn.BatchNorm1d(5), (3, 5)),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", CASES)
def test_parts_are_normalised_as_the_whole_batch_is(case: str, dtype: torch.dtype) -> None:
    make, shape = CASES[case]
    torch.manual_seed(0)
    norm, inputs, given = make().to(dtype), torch.randn(shape, dtype=dtype) * 3 + 10, torch.randn(shape, dtype=dtype)
    for weights in norm.parameters():
        nn.init.normal_(weights)
    meeting = Meeting(3)

    def of_rank(rank: int) -> tuple[nn.Module, Tensor, Tensor]:
        ranks, own = Threads(rank, meeting), copy.deepcopy(norm)
        part = inputs[ranks.share(len(inputs))].clone().requires_grad_()
        for _ in range(2):
            with NormsOfAllRanks(ranks):
                answers = own(part)
        answers.backward(given[ranks.share(len(inputs))])
        assert part.grad is not None
        return own, answers.detach(), part.grad

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(of_rank, range(3)))
    whole, inputs = copy.deepcopy(norm), inputs.requires_grad_()
    for _ in range(2):
        answers = whole(inputs)
    answers.backward(given)
    close = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(torch.cat([one[1] for one in found]), answers.detach(), **close)
    torch.testing.assert_close(torch.cat([one[2] for one in found]), inputs.grad, **close)
    for name, weights in whole.named_parameters():
        summed = sum(one[0].get_parameter(name).grad for one in found)  # type: ignore[misc]
        torch.testing.assert_close(summed, weights.grad, **close)
    for name, buffer in whole.named_buffers():
        for one in found:
            torch.testing.assert_close(one[0].get_buffer(name), buffer, **close)


def test_an_evaluated_norm_takes_its_running_statistics() -> None:
    norm, inputs = nn.BatchNorm2d(3).eval(), torch.randn(2, 3, 4, 4)
    with NormsOfAllRanks(Threads(0, Meeting(2))):
        assert torch.equal(norm(inputs), nn.BatchNorm2d(3).eval()(inputs))


def test_half_precision_is_summed_in_single() -> None:
    norm, inputs = nn.BatchNorm2d(3), torch.randn(4, 3, 4, 4).bfloat16()
    with NormsOfAllRanks(Threads(0, Meeting(1))):
        found = norm(inputs)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), nn.BatchNorm2d(3)(inputs.float()), rtol=2e-2, atol=2e-2)
