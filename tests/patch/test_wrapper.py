"""A model from a package gets a file that builds it with the plan in force."""

import importlib
import sys

import pytest
import torch

from amptune.core.plan import Plan
from amptune.errors import InputError
from amptune.patch.wrapper import wrapper_files, wrapper_source
from tests.patch.cases import plan_of, spec_of


def test_the_wrapper_builds_the_planned_model(tmp_path, monkeypatch):
    sites = {"": "bf16"}
    files = wrapper_files("torch.nn:Linear", plan_of(sites), spec_of(sites))
    assert set(files) == {"Linear_amptuned.py", "amptune_runtime.py"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        model = importlib.import_module("Linear_amptuned").make_model(4, out_features=3)
    finally:
        for name in ("Linear_amptuned", "amptune_runtime"):
            sys.modules.pop(name, None)
    assert isinstance(model, torch.nn.Linear)
    assert model(torch.rand(1, 4)).dtype == torch.bfloat16
    assert model.weight.dtype == torch.float32


def test_a_class_method_is_called_on_its_class():
    assert "from a.b import Model\n" in wrapper_source("a.b:Model.from_name")
    assert "return Model.from_name(*args, **kwargs)" in wrapper_source("a.b:Model.from_name")


@pytest.mark.parametrize("target", ["model.py", "a.b", "a.b:", "a-b:c", "a.b:c()"])
def test_another_kind_of_target_is_an_error(target):
    with pytest.raises(InputError, match="not written as package"):
        wrapper_files(target, Plan(), spec_of({}))
