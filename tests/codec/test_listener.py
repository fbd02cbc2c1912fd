"""The listener's distance: 0 to itself, growing with the damage, with gradients for the copy only."""

import torch

from speechgpt2.codec.listener import Listener


def listener():
    torch.manual_seed(0)
    return Listener(phones=6, width=32, layers=2)


def test_output_has_frames_and_layers():
    logits, activations = listener()(torch.randn(2, 960 * 5 + 500))
    assert logits.shape == (2, 5, 6) and [a.shape for a in activations] == [(2, 5, 32)] * 2


def test_logits_belong_to_their_frame():
    net, pcm = listener(), torch.zeros(1, 960 * 20)
    pcm[:, 960 * 10 : 960 * 11] = torch.randn(960)
    changed = (net(pcm)[0] - net(torch.zeros_like(pcm))[0]).abs().amax(-1)[0] > 1e-6
    reach = 2 * 2  # two layers of kernel 5
    assert changed.nonzero().flatten().tolist() == list(range(10 - reach - 1, 10 + reach + 2))


def test_distance_gives_gradients_to_the_copy_only():
    net, target = listener(), torch.randn(2, 960 * 8)
    assert float(net.distance(target, net(target))) < 1e-5
    slight, bad = (target + level * torch.randn(target.shape) for level in (0.01, 1.0))
    bad.requires_grad_()
    far = net.distance(bad, net(target))
    assert float(far.detach()) > 3 * float(net.distance(slight, net(target))) > 0
    far.backward()
    assert bad.grad.abs().sum() > 0 and all(p.grad is None for p in net.parameters())
