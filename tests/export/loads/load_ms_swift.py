"""Every argument of the YAML is one that swift's own argument classes have."""

import ast

import loading
import yaml

package = loading.source_of("swift")


def fields(*files):
    """Names of the annotated fields of all classes in these files."""
    trees = [ast.parse(path.read_text()) for path in files]
    return {
        node.target.id
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


PLAIN = fields(*(package / "arguments").rglob("*.py"))
MEGATRON = fields(package / "megatron" / "arguments" / "megatron_args.py")

for case in loading.cases():
    values = yaml.safe_load((case.folder / "swift.yaml").read_text())
    known = PLAIN | MEGATRON if "fp8_format" in values else PLAIN
    assert values.keys() <= known, values.keys() - known
