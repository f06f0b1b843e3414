"""What the README promises in code, run as it stands there."""

import re
from pathlib import Path

import torch

BLOCKS = re.findall(r"^```python\n(.*?)^```", (Path(__file__).parents[1] / "README.md").read_text(), re.DOTALL | re.MULTILINE)


def block(mark: str) -> str:
    (found,) = [b for b in BLOCKS if mark in b]
    return found


def test_the_two_lines_give_the_gradients_of_the_plain_script():
    torch.manual_seed(0)
    batch = [torch.rand(7, 1, 28, 28) * 2 - 1 for _ in range(2)]
    script: dict = {"batches": []}
    exec(block("def critic_step"), script)
    gradients = []
    for lines in ("", block("import make_critic_step")):
        exec(lines, script)
        script["optimizer"].zero_grad()
        torch.manual_seed(1)  # the same interpolates
        script["critic_step"](*batch)
        gradients.append([p.grad.clone() for p in script["critic"].parameters()])
    assert type(script["critic_step"]).__name__ == "CriticStep"
    assert script["critic_step"].choice.engine == "explicit"
    scale = max(g.abs().max() for g in gradients[0])
    for plain, ours in zip(*gradients, strict=True):
        assert (plain - ours).abs().max() <= 2e-5 * scale
    before = [p.clone() for p in script["critic"].parameters()]
    script["optimizer"].step()  # the gradients are where the optimizer of the script looks
    assert not any(torch.equal(a, b) for a, b in zip(before[:-1], script["critic"].parameters(), strict=False))
