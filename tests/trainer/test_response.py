"""The loss on replies, in one part and in many."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from roboalign.trainer.response import response_loss

VOCAB, WIDTH = 50, 8


class _Counting(nn.Linear):
    """An output head that counts the rows it is given."""

    def __init__(self) -> None:
        super().__init__(WIDTH, VOCAB, bias=False)
        self.rows: list[int] = []

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        self.rows.append(len(hidden))
        return super().forward(hidden)


@pytest.fixture
def case():
    torch.manual_seed(0)
    labels = torch.full((3, 12), -100)
    labels[:, 8:] = torch.randint(VOCAB, (3, 4))
    labels[1, 10:] = -100
    return _Counting(), torch.randn((3, 12, WIDTH), requires_grad=True), labels


def test_it_is_the_cross_entropy_of_the_next_token(case) -> None:
    head, hidden, labels = case
    found = response_loss(head, hidden, labels)
    plain = F.cross_entropy(head(hidden)[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    torch.testing.assert_close(found.total, plain)
    assert found.num_tokens == 10


@pytest.mark.parametrize("max_logits", [1, 3 * VOCAB, 10 * VOCAB])
def test_parts_have_the_gradients_of_the_whole(case, max_logits) -> None:
    head, hidden, labels = case
    wanted = torch.autograd.grad(response_loss(head, hidden, labels).total, (hidden, head.weight))
    found = response_loss(head, hidden, labels, max_logits=max_logits)
    for one, other in zip(torch.autograd.grad(found.total, (hidden, head.weight)), wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_no_logit_is_made_for_a_prompt_and_never_too_many_at_once(case) -> None:
    head, hidden, labels = case
    response_loss(head, hidden, labels, max_logits=4 * VOCAB)
    assert sum(head.rows) == 10
    assert max(head.rows) <= 4
