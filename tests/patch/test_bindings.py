"""What the function that builds the model does to it decides where the plan goes."""

import ast

import pytest

from amptune.patch.bindings import Binding, binding_of, changes_model, defines_class, has_subclass

CLASSES = """
class Net(nn.Module):
    def __init__(self):
        self.fc = nn.Linear(2, 2)
    def add_head(self):
        self.head = nn.Linear(2, 2)
    def freeze(self):
        self.frozen = True
        self.fc.requires_grad_(False)
"""


@pytest.mark.parametrize(
    ("body", "changes"),
    [
        ("return Net()", False),
        ("return Net().to('cuda').train()", False),
        ("m = Net()\n    m.apply(init)\n    m.load_state_dict(torch.load('x'))\n    return m", False),
        ("m = Net()\n    m.freeze()\n    print(m)\n    return m", False),
        ("cfg = Config()\n    cfg.depth = 3\n    return Net(cfg)", False),
        ("m = Net()\n    m.fc = nn.Linear(2, 3)\n    return m", True),
        ("m = Net()\n    m.layers[0].fc = nn.Linear(2, 3)\n    return m", True),
        ("m = Net()\n    m.layers[0] = nn.Linear(2, 3)\n    return m", True),
        ("m = Net()\n    setattr(m, 'fc', nn.Linear(2, 3))\n    return m", True),
        ("m = Net()\n    m.add_module('x', nn.ReLU())\n    return m", True),
        ("m = Net()\n    m.add_head()\n    return m", True),
        ("m = Net()\n    m = get_peft_model(m, config)\n    return m", True),
    ],
)
def test_changes_after_the_constructor_are_seen(body, changes):
    tree = ast.parse(f"{CLASSES}\ndef make_model():\n    {body}\n")
    assert changes_model(tree, "make_model") == changes


@pytest.mark.parametrize(
    ("source", "binding"),
    [
        ("def f(): pass\n", Binding(True)),
        ("if x:\n    def f(): pass\nelse:\n    def f(): pass\n", Binding(True)),
        ("from m import g as f\nx = 1\n", Binding(False, 1)),
        ("import f.g\n", Binding(False, 1)),
        ("x = 1\nf = lambda:\\\n    1\n", Binding(False, 3)),
        ("f: int = 3\n", Binding(False, 1)),
        ("f: int\n", None),
        ("class A:\n    def f(self): pass\n", None),
    ],
)
def test_how_a_name_is_bound(source, binding):
    assert binding_of(ast.parse(source), "f") == binding


def test_classes_are_found_wherever_they_stand():
    tree = ast.parse("class A:\n    class B: pass\nif 1:\n    def f():\n        class C(A, Generic[T]): pass\n")
    assert all(defines_class(tree, name) for name in ("A", "A.B", "f.C"))
    assert not any(defines_class(tree, name) for name in ("B", "C", "f"))
    assert has_subclass(tree, "A")
    assert not has_subclass(tree, "A.B")
