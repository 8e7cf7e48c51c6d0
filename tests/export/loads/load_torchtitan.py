"""torchtitan's own filter decides on the exported names; its converter has the fields that are written."""

import ast
from types import SimpleNamespace

import loading

package = loading.source_of("torchtitan")
quantization = package / "components" / "quantization"


def definition(path, name):
    """A function or class of a file, as a syntax tree."""
    return next(node for node in ast.walk(ast.parse(path.read_text())) if getattr(node, "name", None) == name)


space = {"Linear": SimpleNamespace(Config=None)}
function = definition(quantization / "utils.py", "module_filter_fn")
exec(ast.unparse(function), space)
converter = definition(quantization / "float8.py", "Float8LinearConverter")
base = definition(quantization / "__init__.py", "QuantizationConverter")
FIELDS = {
    node.target.id: node for cls in (base, converter) for node in ast.walk(cls) if isinstance(node, ast.AnnAssign)
}

for case in loading.cases():
    tree = ast.parse((case.folder / "float8_config.py").read_text())
    assigned = {node.targets[0].id: node.value for node in tree.body if isinstance(node, ast.Assign)}
    filters = ast.literal_eval(assigned["FILTER_FQNS"])
    keywords = {item.arg: item.value for item in assigned["FLOAT8"].keywords}
    assert keywords.keys() <= FIELDS.keys()
    assert keywords["recipe_name"].value in ast.unparse(FIELDS["recipe_name"].annotation)
    linear = SimpleNamespace(in_features=32, out_features=64)
    converted = {path for path in case.plan.sites if space["module_filter_fn"](linear, path, filters)}
    assert converted == {path for path, site in case.plan.sites.items() if site.format.is_fp8}
