"""Batches prepared by workers are those of one process, in order, also after a resumption."""

import multiprocessing
import os
import signal
from dataclasses import replace

import pytest
import torch

from speechgpt2.codec.train import train as train_codec
from speechgpt2.errors import UserError
from speechgpt2.lm.train import LMTrainer
from speechgpt2.training.prefetch import StepLoader
from tests import needs
from tests.training import test_resume, test_stages
from tests.training.test_stages import STAGE, Numbers

tiny_codec = test_resume.tiny_codec
precise = test_stages.precise
CPU = torch.device("cpu")
pytestmark = needs.condition("fork" in multiprocessing.get_all_start_methods(), "the system forks no processes")


def step_and_process(step):
    return step, os.getpid(), torch.full((3,), step)


def refuse(step):
    raise UserError("a shard is cut")


def die(step):
    os.kill(os.getpid(), signal.SIGKILL)


def test_steps_come_in_order_from_any_first_step():
    loader = StepLoader(step_and_process, 10, workers=2)
    for steps in (range(0, 4), range(7, 10), (0,)):
        for step in steps:
            number, process, tensor = loader.take(step)
            assert number == step and tensor.tolist() == [step] * 3 and process != os.getpid()
    assert StepLoader(step_and_process, 10).take(3)[1] == os.getpid()


def test_errors_of_a_worker_are_one_line():
    with pytest.raises(UserError, match=r"^a shard is cut$"):
        StepLoader(refuse, 10, workers=1).take(0)
    with pytest.raises(UserError, match="a process that prepares batches has ended; go on with --resume"):
        StepLoader(die, 10, workers=1).take(0)


def test_losses_are_the_same_with_workers():
    config = replace(STAGE, dropout=0.2, corrupt_given=0.1, accumulate=2)
    found = []
    for workers in (0, 2):
        lm = test_stages.model()
        trainer = LMTrainer(replace(config, workers=workers), lm, Numbers(lm.prompt), CPU)
        found.append([[float(v) for v in trainer.step(step).values()] for step in (0, 1, 3)])
    assert found[0] == found[1]


def test_codecs_are_the_same_with_workers(tiny_codec, tmp_path):
    config = replace(tiny_codec, adversarial_from=None, freeze_from=None, steps=6)
    codecs = [
        train_codec(replace(config, workers=workers), test_resume.Vowels(), str(tmp_path / str(workers)))
        for workers in (0, 1)
    ]
    assert test_resume.same(*(codec.state_dict() for codec in codecs))
